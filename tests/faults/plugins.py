"""Plugins that misbehave: the tool works without them, and one line says what is wrong."""

import json
import shutil
from pathlib import Path

from faults.base import Budget, Tally, case, invem, recipe

GROUP = "Plugins that misbehave"
HOOK = "from invem import hookimpl\n@hookimpl\ndef invem_operators():\n    "
BROKEN = {
    "raises at import": "raise RuntimeError('no driver')",
    "raises SystemExit(0) at import": "raise SystemExit(0)",
    "calls sys.exit('bye') at import": "import sys; sys.exit('bye')",
    "does not parse": "def broken(:\n",
    "is not text": "\x00\x01",
    "imports what is not there": "import nothing_like_this_is_installed",
    "imports itself for ever": "import sys; sys.setrecursionlimit(200)\ndef f(): f()\nf()",
    "raises an error of two lines": "raise ValueError('one\\ntwo\\x1b[2J')",
    "raises in its hook": HOOK + "raise KeyError('coil')",
    "raises SystemExit in its hook": HOOK + "raise SystemExit(3)",
    "returns None": HOOK + "return None",
    "returns a list": HOOK + "return ['a']",
    "returns numbers": HOOK + "return {'a': 5}",
    "returns names that are numbers": HOOK + "return {5: print}",
    "misspells its hook": HOOK.replace("operators", "operatorz") + "return {}",
    "has a hook that takes an argument": HOOK.replace("():", "(wrong):") + "return {}",
    "raises a bare exception": "raise Exception",
    "raises an exception without text": HOOK + "raise AssertionError",
}
HARMLESS = {
    "is empty": "",
    "writes to stdout": "print('hello')\nimport os, sys\nsys.stdout.write('more')\n",
    "offers nothing": HOOK + "return {}",
    "names a module that is not there": HOOK + "return {'ghost': 'nowhere:thing'}",
    "offers a name of invem": HOOK + "return {'identity': print}",
    "imports torch": "import torch",
}


def listed(tmp: Path, text: str) -> tuple[dict[str, object], str, str]:
    """Returns what the commands say with a plugin: whether they work, stderr, and what failed."""
    folder = tmp / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / "guest.py").write_bytes(text.encode())
    env: dict[str, str | None] = {"INVEM_PLUGINS_DIR": str(folder)}
    err, wrong = "", ""
    for words in (["ls", "--json"], ["plugin", "list", "--json"], ["plan", recipe(tmp)]):
        done = invem(words, tmp / "said", env=env)
        err += done.err
        if done.code != 0 or not done.is_clean:
            wrong = f"{words}: {done.code} {done.err[-300:]}"
        elif "--json" in words:
            json.loads(done.out)
    return {}, err, wrong


@case(
    GROUP,
    "a plugin that raises or exits at import or in a hook, misspells a hook, or returns "
    "what is no component: one line names it, everything else works",
)
def broken_plugins(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, text in BROKEN.items():
        _, err, wrong = listed(tmp, text)
        lines = [line for line in err.splitlines() if "guest" in line]
        commands = 3
        fine = not wrong and 1 <= len(lines) <= commands and "\x1b" not in err
        tally.judge(fine, f"{name}: {wrong} {err[-300:]}", refused=True)


@case(GROUP, "a plugin that is empty, prints, or offers names that lead nowhere: everything works")
def odd_plugins(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, text in HARMLESS.items():
        wanted = "'identity' is offered twice" if name == "offers a name of invem" else ""
        _, err, wrong = listed(tmp, text)
        tally.judge(not wrong and wanted in err + wanted, f"{name}: {wrong}")


@case(GROUP, "a recipe that needs what a broken plugin would have offered: exit code 3")
def needed_plugins(tmp: Path, budget: Budget, tally: Tally) -> None:
    folder = tmp / "plugins"
    folder.mkdir()
    for name, text in BROKEN.items():
        if "two lines" in name:
            continue
        (folder / "guest.py").write_bytes(text.encode())
        env: dict[str, str | None] = {"INVEM_PLUGINS_DIR": str(folder)}
        done = invem(
            ["run", recipe(tmp), "operator=coil", "--out", tmp / "run"], tmp / "said", env=env
        )
        fine = done.is_refusal(3, naming="guest") and not (tmp / "run").exists()
        tally.judge(fine, f"{name}: {done.code} {done.err[-300:]}", refused=True)
        shutil.rmtree(tmp / "run", ignore_errors=True)
    (folder / "guest.py").write_text(HARMLESS["names a module that is not there"])
    done = invem(["plan", recipe(tmp), "operator=ghost"], tmp / "said", env=env)
    tally.judge(done.is_refusal(3, naming="ghost"), f"ghost: {done.code} {done.err}", refused=True)
    (folder / "guest.py").write_text(HARMLESS["offers a name of invem"])
    done = invem(["plan", recipe(tmp), "operator=identity"], tmp / "said", env=env)
    tally.judge(done.is_refusal(2, naming="offered twice"), f"twice: {done.err}", refused=True)
