"""M-step objectives that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_objectives() -> dict[str, str]:
    return {
        "ambient": "invem_plugins.objectives.ambient:Ambient",
        "ambient-tweedie": "invem_plugins.objectives.ambient_tweedie:AmbientTweedie",
        "cond-dsm": "invem_plugins.objectives.cond_dsm:CondDSM",
        "dsm": "invem_plugins.objectives.dsm:DSM",
        "factor-mixture": "invem_plugins.objectives.factor_mixture:FactorMixtureMoments",
        "gaussian-mixture": "invem_plugins.objectives.gaussian_mixture:GaussianMixture",
        "gaussian-moments": "invem_plugins.objectives.gaussian_moments:GaussianMoments",
        "refine": "invem_plugins.objectives.refine:Refine",
        "gsure": "invem_plugins.objectives.gsure:GSURE",
        "rsd": "invem_plugins.objectives.rsd:RSD",
        "sure-score": "invem_plugins.objectives.sure_score:SUREScore",
    }
