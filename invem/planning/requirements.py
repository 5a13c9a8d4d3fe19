"""The distributions that a recipe requires."""

from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from invem.config import Recipe
from invem.planning.build import Builder

__all__ = ["check_requirements"]


def check_requirements(recipe: Recipe, builder: Builder) -> None:
    """Refuses a recipe whose `requires` names what is not installed, or another version."""
    for i, text in enumerate(recipe.requires):
        try:
            requirement = Requirement(text)
            installed = metadata.version(requirement.name)
        except InvalidRequirement:
            message = f"'{text}' is not a requirement such as invem-ct>=0.3"
            builder.fail(("requires", i), message)
        except metadata.PackageNotFoundError:
            builder.missing = True
            message = f"{text} is not installed; try: pip install '{text}'"
            builder.fail(("requires", i), message)
        else:
            if not requirement.specifier.contains(installed, prereleases=True):
                builder.missing = True
                message = f"{text} is needed, version {installed} is installed"
                builder.fail(("requires", i), message)
