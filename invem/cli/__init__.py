"""The command line: thin commands over the Python door (`invem.door`).

Modules are imported when a command is defined, libraries such as torch when one is carried out, so
that ``invem --help`` and ``invem ls`` answer at once.
"""

from invem.cli.interrupt import ending_quietly

with ending_quietly():
    from invem.cli import benchmark, components, frames, plan, recipes, runs
    from invem.cli.app import app, main, plugin

__all__ = ["app", "main"]

# The order is that of ``invem --help``.
for _command in (
    frames.inspect,
    frames.init,
    runs.run,
    runs.resume,
    plan.plan,
    recipes.identify,
    recipes.show,
    components.ls,
    components.info,
):
    app.command()(_command)
app.command(name="eval")(runs.evaluate)
app.command()(runs.sample)
app.command()(runs.restore)
app.command()(benchmark.bench)
app.command(name="report")(runs.write_report)

plugin.command(name="list")(components.list_plugins)
plugin.command(name="new")(components.new_plugin)
plugin.command(name="check")(components.check_plugins)
