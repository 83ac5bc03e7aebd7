"""The words of the command line, and its help. Imports nothing heavy."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from typing import Any

_MODEL = """\
A MODEL is, in this order:
  a file           a snapshot (__model_budget__/net.yaml), what `show --json` printed, or a model's file: .onnx,
                   .tflite, .pt2, .pte, .safetensors, a state dict, .keras, .h5, a SavedModel folder
  REF:FILE         a snapshot as it was committed: HEAD~1:__model_budget__/net.yaml
  an id            of the manifest: digits-cnn
  module:name      a function or class that returns a model, or a model: torchvision.models:resnet18
"""

_EXIT_CODES_HELP = """\
exit codes:
  0  done; check: every model is as committed and within its limits; diff: nothing differs
  1  check, update: a model failed; merge: so did one, or the parts are not a whole run; diff: something
     differs; tighten: a limit can be tightened; plan: a run does not fit a device, or its memory is not known
  2  it could not be done: a wrong word on the command line, a file, ref or model that is not there
     or cannot be read
  4  check, update, merge: no model is registered
"""

_MAIN_HELP = f"""\
Counts neural networks without memory for their weights: layers, shapes, params, FLOPs, bytes; holds
them against committed snapshots and limits. The same engine as pytest --model-budget, without pytest.

  modelbudget show torchvision.models:resnet18 --inputs "float32[B, 3, 224, 224]"
  modelbudget init                       # write a manifest of the models in this project
  modelbudget update                     # write their snapshots, to be committed
  modelbudget check                      # fail when a model changed or outgrew a limit
  modelbudget diff HEAD~1                # what moved since the last commit, and why

{_MODEL}"""


def build_parser() -> ArgumentParser:
    """The whole command line; `module` of what it parses is the module of the command."""
    top = ArgumentParser(
        "modelbudget",
        description=_MAIN_HELP,
        epilog=_EXIT_CODES_HELP,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    top.add_argument(
        "--print-completion", action=_Completion, choices=("bash", "zsh", "tcsh"), metavar="SHELL",
        help="print what completes words in bash, zsh or tcsh, and leave",
    )  # fmt: skip
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_show,
        _add_why,
        _add_plan,
        _add_diff,
        _add_check,
        _add_update,
        _add_merge,
        _add_init,
        _add_tighten,
        _add_schema,
        _add_mlflow,
    ):
        add(commands)
    return top


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"modelbudget {version('pytest-modelbudget')}")
        parser.exit()


class _Completion(argparse.Action):
    """Prints a script that completes the words of this command line; made by shtab, which is an extra."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("completion needs shtab: pip install 'pytest-modelbudget[completion]'")
        for action in _all_actions(parser):
            if action.metavar in ("PATH", "MODEL", "FILE", "PART"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit()


def _all_actions(parser: ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _all_actions(command)


def _add_command(commands: Any, name: str, title: str, text: str, *, module: str = "") -> ArgumentParser:
    command: ArgumentParser = commands.add_parser(
        name, help=title, description=f"{title[0].upper()}{title[1:]}.\n\n{text}",
        formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    command.set_defaults(module=module or name)
    return command


def _add_manifest_option(command: ArgumentParser) -> None:
    command.add_argument(
        "--file", metavar="PATH",
        help="the manifest, or its folder; else modelbudget.yaml or [tool.modelbudget] here or in a folder above",
    )  # fmt: skip


def _add_call_options(command: ArgumentParser) -> None:
    """How a `module:name` is called; written as in a manifest."""
    group = command.add_argument_group("for module:name, written as in a manifest")
    add = group.add_argument
    add("--inputs", metavar="SPEC", help='"float32[B, 3, 224, 224]", "{user: \'float32[B, 9]\'}" or module:callable')
    add("--args", metavar="LIST", help='positional arguments of the function: "[16, 10]"')
    add("--kwargs", metavar="MAPPING", help='named arguments of the function: "{classes: 10}"')
    add("--batch", metavar="N", type=int, help="size of the dimension B (1)")
    add("--dims", metavar="MAPPING", help='sizes of other named dimensions: "{T: 128}"')
    add(
        "--framework",
        choices=("torch", "jax", "keras", "tf_keras", "tensorflow"),
        help="imported before the function runs",
    )
    add("--run", choices=("real", "abstract"), help="with memory for weights and activations, or never with it")


def _add_show(commands: Any) -> None:
    command = _add_command(
        commands, "show", "print a model as a table: layers, shapes, params, connections, totals",
        f"{_MODEL}\n"
        'example: modelbudget show nets:tiny_cnn --kwargs "{width: 16}" --inputs "float32[B, 3, 32, 32]" --why',
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--why", action="store_true", help="a column: where the params of each layer are from")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="as JSON, which show, why and diff read again")
    output.add_argument("--csv", action="store_true", help="the rows as CSV, unknown numbers empty")
    _add_manifest_option(command)
    _add_call_options(command)


def _add_why(commands: Any) -> None:
    command = _add_command(
        commands, "why", "say where a model's params, FLOPs and memory are, and why",
        f"{_MODEL}\nWithout LAYER: what stands out in the model, then its largest layers with the arithmetic of each.\n"
        "With LAYER (a path, or a glob such as '*.attn'): everything that is known of the layers that match.\n\n"
        "example: modelbudget why digits-cnn dense",
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL")
    command.add_argument("layer", metavar="LAYER", nargs="?")
    command.add_argument("--top", metavar="N", type=int, default=10, help="how many layers (10)")
    _add_manifest_option(command)
    _add_call_options(command)


def _add_plan(commands: Any) -> None:
    command = _add_command(
        commands, "plan", "say what memory a step, a forward pass or serving takes, and what it fits",
        f"{_MODEL}\nRuns are those of the manifest (training:, inference:, serving:) unless one is given here;\n"
        "with none it is a training step with adamw in float32. A recipe is written as key=value, or as a mapping in\n"
        "braces. "
        "Nothing is allocated, and no GPU is needed. Exit code 1: it does not fit, or is not known.\n\n"
        "examples:\n"
        "  modelbudget plan torchvision.models:resnet50 --inputs \"float32[B, 3, 224, 224]\" \\\n"
        "    --training batch=64,optimizer=sgd,precision=bf16-mixed --device \"A100 80GB\" --device \"24 GB\"\n"
        "  modelbudget plan tiny-gpt --growth T",
    )  # fmt: skip
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--training", metavar="RECIPE", help="batch=8,optimizer=adamw,dims.T=128")
    command.add_argument("--inference", metavar="RECIPE", help="batch=8,precision=bf16")
    command.add_argument("--serving", metavar="RECIPE", help="requests=64,tokens=32k,precision=fp8,tp=2")
    command.add_argument(
        "--device", metavar="NAME", action="append", default=[], help="a device, or its memory: 24 GB (repeatable)"
    )
    command.add_argument(
        "--growth", metavar="DIM", action="append", default=[], help="say how memory grows with B, T, ... (repeatable)"
    )
    command.add_argument("--json", action="store_true", help="as JSON, with the timeline")
    _add_manifest_option(command)
    _add_call_options(command)


def _add_diff(commands: Any) -> None:
    command = _add_command(
        commands, "diff", "say what changed between two models or two commits, and why",
        f"{_MODEL}\nA and B may also be git refs: then every snapshot that differs between the two is told. A ref\n"
        "beside a model stands for that model's snapshot at the ref. Without B it is the work tree, whose snapshot\n"
        "files are compared: nothing is built, so an edit shows after update, or with diff A ID. A name that\n"
        "is a model and a ref is the model; refs/heads/NAME is the ref. Exit codes are those of diff(1): 0 when\n"
        "nothing differs, 1 when something does, 2 on trouble.\n\n"
        "examples:\n"
        "  modelbudget diff HEAD~1                                  all snapshots, since the last commit\n"
        "  modelbudget diff origin/main digits-cnn                  as committed there, and as it builds now\n"
        "  modelbudget diff nets:old nets:new --inputs \"float32[B, 16]\"",
    )  # fmt: skip
    command.add_argument("before", metavar="A")
    command.add_argument("after", metavar="B", nargs="?")
    command.add_argument("--json", action="store_true", help="as JSON: a list of models with their changes")
    command.add_argument(
        "--top", metavar="N", type=int, default=40, help="how many changes of each model; 0 for all (40)"
    )
    _add_manifest_option(command)
    _add_call_options(command)


def _add_selection_options(command: ArgumentParser) -> None:
    command.add_argument("ids", metavar="ID", nargs="*", help="ids or globs of models; all of the manifest when none")
    _add_manifest_option(command)
    command.add_argument(
        "--base", metavar="REF", default="auto",
        help="auto (default), off, or the git ref that growth and loosened limits are held against",
    )  # fmt: skip
    command.add_argument(
        "--jobs", metavar="N", default="",
        help="count N models at a time (auto: one for each core), each in a process that imports the frameworks: N"
        " times their memory",
    )  # fmt: skip
    command.add_argument(
        "--on", metavar="WHERE", default="",
        help="count the models on a Dask cluster (extra [dask]): tcp://scheduler:8786, a scheduler's file, or dask for"
        " one of this machine's own",
    )  # fmt: skip
    _add_end_options(command)
    group = command.add_argument_group("a run on many machines")
    group.add_argument("--part", metavar="FILE", help="write what is found as a part of a run, for modelbudget merge")
    group.add_argument("--shard", metavar="I/N", help="check only the models that are dealt to shard I of N")
    group.add_argument(
        "--times", metavar="FILE", help="deal models by these seconds, which modelbudget merge --times writes"
    )


def _add_end_options(command: ArgumentParser) -> None:
    """What the end of a run does with its results."""
    command.add_argument(
        "--report", metavar="KIND:PATH", action="append", default=[],
        help="write a report (repeatable); the kinds are those of --model-budget-report",
    )  # fmt: skip
    command.add_argument("--mlflow", action="store_true", help="log to MLflow, as --model-budget-mlflow does")
    command.add_argument("-v", "--verbose", action="count", default=0, help="all tables; twice: all rows, and why")


_REGISTERED = (
    "These are the models of the manifest and its sources. Models that test modules declare, with the\n"
    "decorator or the fixture, are checked by pytest --model-budget, which runs these modules.\n"
)


def _add_check(commands: Any) -> None:
    _add_selection_options(_add_command(
        commands, "check", "hold the registered models against their snapshots and limits",
        f"{_REGISTERED}\n{_EXIT_CODES_HELP}",
    ))  # fmt: skip


def _add_update(commands: Any) -> None:
    _add_selection_options(_add_command(
        commands, "update", "check, and write missing and changed snapshots",
        f"Never deletes one; limits are enforced.\n\n{_REGISTERED}\n{_EXIT_CODES_HELP}",
        module="check",
    ))  # fmt: skip
    commands.choices["update"].set_defaults(accept=True)
    commands.choices["check"].set_defaults(accept=False)


def _add_merge(commands: Any) -> None:
    command = _add_command(
        commands, "merge", "judge the parts of a run on many machines, as one run",
        "Takes what check --part and pytest --model-budget-part wrote, all of it: the parts of one commit, that\n"
        "together have each registered model once. Then sums over models, obsolete snapshots, the base, reports and\n"
        "the exit code are those of a run on one machine. Works in a checkout of that commit; builds nothing.\n"
        "Exit code 1: a model failed, or the parts are not a whole run; each reason is named.\n\n"
        "example: modelbudget merge parts/ --report md:summary.md",
    )  # fmt: skip
    command.add_argument("parts", metavar="PART", nargs="*", help="the file of a part, or a folder: all *.part in it")
    command.add_argument(
        "--times", metavar="FILE", help="write the seconds of each model there, for the shards of the next run"
    )
    _add_end_options(command)
    _add_manifest_option(command)


def _add_init(commands: Any) -> None:
    command = _add_command(
        commands, "init", "write a manifest of the models that this project can build",
        "Reads the project's files, imports those that seem to define models in a process apart, without network, and\n"
        "builds what plainly returns a torch, Keras, TensorFlow or JAX model; a function that does not show it is\n"
        "never called. Arguments are taken from calls in the code, its tests and its README, from defaults of\n"
        "configurations, command lines and settings files, and from tables of names; sizes are guessed by their\n"
        "names only where no model runs without. Inputs are those seen in a call, or guesses that run. Each model\n"
        "gets limits above what it has now; the manifest marks what is a guess, and has what did not run as comments\n"
        "with the error. Ctrl-C ends it early and keeps what was found.",
    )  # fmt: skip
    command.add_argument("paths", metavar="PATH", nargs="*", help="files and folders to look in; this folder when none")
    command.add_argument(
        "--headroom", metavar="SHARE", default="10%", help="how far limits are above what is there (10%%)"
    )
    command.add_argument(
        "--file", metavar="PATH", default="modelbudget.yaml", help="the manifest to write (modelbudget.yaml)"
    )
    command.add_argument("--force", action="store_true", help="write over a manifest that is there")
    command.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=30, help="for each file, and each builder (30)"
    )
    command.add_argument(
        "--total",
        metavar="SECONDS",
        type=float,
        default=45,
        help="after which nothing more is tried once a model ran (45)",
    )


def _add_tighten(commands: Any) -> None:
    command = _add_command(
        commands, "tighten", "lower limits that have a ratchet to what the models need now",
        "Checks the models, and prints the change to the manifest as a diff; comments and all else stay as they\n"
        "are. A limit is never raised, and models that fail are left alone.\n"
        "Exit code 0: nothing to tighten, or written; 1: a limit can be tightened.\n\n"
        "example: budgets: {params: {max: 30M, ratchet: {slack: 2%}}}",
    )  # fmt: skip
    command.add_argument("--write", action="store_true", help="change the manifest")
    _add_manifest_option(command)


def _add_schema(commands: Any) -> None:
    _add_command(
        commands, "schema", "print the JSON schema of the manifest, for editors",
        "modelbudget schema > modelbudget.schema.json, and as the first line of modelbudget.yaml:\n"
        "  # yaml-language-server: $schema=modelbudget.schema.json",
    )  # fmt: skip


def _add_mlflow(commands: Any) -> None:
    command = _add_command(
        commands, "mlflow", "send what could not be sent to MLflow before",
        "Runs that a server did not take wait in .modelbudget/outbox; each is sent once, however often this is run.\n"
        "The server is MLFLOW_TRACKING_URI, else the local store. Exit code 0: nothing is left, 1: something is.",
        module="send",
    )  # fmt: skip
    command.add_argument("what", choices=["send"], help="send all that waits")
    _add_manifest_option(command)
