"""The commands that every day needs: init, night, replay, ask, status, history, report, release, stats, ui, deploy."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from editing.shown import printable
from flows.cli import (
    almanac,
    bench,
    calibrate,
    catch_up,
    champion,
    evals,
    explain,
    facts,
    feed,
    ledger,
    model,
    plan,
    recipe,
)
from flows.cli.console import (
    EVERY_DAY,
    PANELS,
    RESEARCH,
    SET_UP,
    UNDO,
    WIDTH_OF_FILES,
    bars,
    err,
    errors,
    out,
    print_json,
    require_text,
    shown,
    speak,
    table,
)
from flows.cli.nights import night_became, night_rows, night_told, nights_table, print_timing
from tasks.log import log, open_log
from tasks.settings import CONFIG_NAME, SettingsError, activate, load_settings
from tasks.waiting import require_prefect

if TYPE_CHECKING:
    from flows.replay import Answer, ReplayedNight


class _InPanels(TyperGroup):
    """Commands by panel, the daily ones first."""

    def list_commands(self, ctx: Any) -> list[str]:
        def place(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        return sorted(self.commands, key=place)


app = typer.Typer(
    cls=_InPanels,
    help="Keeps a deployed language model's facts up to date, every night, without touching its weights.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(model.app, name="model", rich_help_panel=SET_UP)
app.add_typer(feed.app, name="feed", rich_help_panel=SET_UP)
app.add_typer(plan.app)
app.command(rich_help_panel=SET_UP)(calibrate.calibrate)
app.add_typer(champion.app)
app.add_typer(facts.app)
app.add_typer(explain.app)
app.add_typer(ledger.app, name="ledger", rich_help_panel=UNDO)
app.command("eval", rich_help_panel=RESEARCH)(evals.evaluate)
app.command(rich_help_panel=RESEARCH)(evals.retention)
app.add_typer(evals.suites_app, name="suites", rich_help_panel=RESEARCH)
app.add_typer(bench.app, name="bench", rich_help_panel=RESEARCH)
app.add_typer(recipe.app, name="recipe", rich_help_panel=RESEARCH)
app.command("catch-up", rich_help_panel=RESEARCH)(catch_up.catch_up)
app.add_typer(almanac.app, name="almanac", rich_help_panel=RESEARCH)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SHOWN = 20
WORK = ("night", "replay", "catch-up", "retract", "promote", "rollback", "compact", "canary", "recipe", "deploy")


def _tell_version(wanted: bool) -> None:
    if wanted:
        out.print(f"errata {metadata.version('errata')}")
        raise typer.Exit


@app.callback()
def prepare(
    context: typer.Context,
    told: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print Errata's version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only, no progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="The log too, on stderr, and tracebacks.")] = False,
) -> None:
    """Read the settings, check them, open the log and point Prefect at the workspace, before anything heavy starts."""
    speak(quiet=quiet, verbose=verbose)
    if context.invoked_subcommand == "init" or "--help" in sys.argv:
        return
    from tasks.checks import check_room, check_settings

    settings = load_settings()
    open_log(settings.home)
    log.info("errata %s", printable(shlex.join(sys.argv[1:])))
    check_settings(settings, with_model=context.invoked_subcommand != "model")
    work = context.invoked_subcommand in WORK
    if work:
        check_room(settings)
    activate(settings, patient=work)
    if (work or context.invoked_subcommand == "approve") and (server := os.environ.get("PREFECT_API_URL")):
        require_prefect(server)


@app.command(rich_help_panel=SET_UP)
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    model: Annotated[str | None, typer.Option(help="Hub id, imported model, folder or GGUF file.")] = None,
    method: Annotated[str, typer.Option(help="coachhook, recipe or both.")] = "coachhook",
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write an `errata.toml` that runs as it is: for a model and a method, with every choice explained beside it.

    It names the methods, the options of the chosen one with meaning and default, layers that fit the model, the
    suites with their metrics, and the feed's columns.

    Example: `errata init . --model ./my-model --method coachhook`
    """
    from tasks.proposal import proposal

    path = folder / CONFIG_NAME
    if path.exists() and not force:
        raise SettingsError(f"{path} exists; edit it, or replace it with --force")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(proposal(model, method), encoding="utf-8")
    out.print(f"wrote {path}; put feeds into {path.parent / 'var' / 'landing'}, then `errata night`", soft_wrap=True)


@app.command(rich_help_panel=EVERY_DAY)
def night(
    as_of: Annotated[datetime | None, typer.Option(help="Take facts effective by this time (UTC).")] = None,
    dry_run: Annotated[bool, typer.Option(help="Edit and evaluate, but register and promote nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run one night: take in the feed, edit, evaluate, judge, register, promote.

    Example: `errata night --as-of 2018-02-28`
    """
    from flows.night import NightConfig
    from flows.night import night as run
    from tasks.feed.ingest import left_lying

    with bars():
        summary = run(NightConfig(as_of=as_of and as_of.replace(tzinfo=UTC), dry_run=dry_run))
    if as_json:
        print_json(summary.to_dict())
    else:
        out.print(nights_table("The night", [summary.to_dict()]))
        print_timing(out, [summary.timing])
        if summary.waits_until:
            out.print(night_became(summary.to_dict()), soft_wrap=True)
        if kept_out := summary.blamed + summary.contradicting:
            out.print(f"Kept out: {kept_out}; `errata status` says which facts and why", soft_wrap=True)
        _tell_left_lying(left_lying(load_settings().landing).values())


@app.command(rich_help_panel=RESEARCH)
def replay(
    nights: Annotated[str, typer.Option(help="How many nights of history, or 'all'.")] = "6",
    method: Annotated[str | None, typer.Option(help="The editing method; default: the settings'.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Also draw the closing table into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replay what really happened after 2018-01-01 on the Almanac, night by night.

    Example: `errata replay --nights 6 --method recipe`
    """
    from flows.replay import highlights, history
    from flows.replay import replay as run
    from tasks.workspace import method_in_force

    if nights != "all" and not (nights.isdecimal() and int(nights)):
        raise typer.BadParameter(f"{nights!r} is neither a number of nights nor 'all'", param_hint="--nights")
    count = None if nights == "all" else int(nights)
    total = min(count or len(history()), len(history()))
    replayed = []
    with bars(), method_in_force(method):
        for item in run(count):
            replayed.append(item)
            if as_json:
                continue
            place = f"[dim]{len(replayed)}/{total}[/dim]"
            err.print(f"{place} [bold]{item.date:%d %B %Y}[/bold]: {night_told(item.summary.to_dict())}")
            for answer in item.answers:
                err.print(
                    f"   {shown(answer.question)} [bold]{shown(answer.after)}[/bold]"
                    + _doubt(answer.right, answer.truth)
                )
    if as_json:
        print_json([item.summary.to_dict() for item in replayed])
        return
    _close(out, replayed, highlights(replayed))
    out.print(
        "\n[bold]Where to look next[/bold]\n"
        "  make shell       a shell with `errata` on its PATH (or: . .venv/bin/activate)\n"
        "  make ui          Prefect's and MLflow's pages: runs, plots, per-item tables, versions\n"
        "  errata history   every night, and every move of the aliases\n"
        "  errata ask 'The head of government of the United Kingdom is' --version base",
        soft_wrap=True,
    )
    if svg:
        canvas = Console(record=True, width=WIDTH_OF_FILES, file=StringIO(), highlight=False)
        _close(canvas, replayed, highlights(replayed))
        canvas.save_svg(str(svg), title="make night")


def _tell_left_lying(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        errors.print(f"not taken in: {printable(sentence)}", soft_wrap=True, markup=False)


def _close(console: Console, replayed: Sequence[ReplayedNight], told: Sequence[Answer]) -> None:
    console.print("[bold]Before and after[/bold]")
    for answer in told:
        question, before, after = (shown(text) for text in (answer.question, answer.before, answer.after))
        console.print(f"  {question}\n    base: {before}\n    now:  [bold]{after}[/bold]")
    console.print(nights_table("\nThe nights", [item.summary.to_dict() for item in replayed]))
    print_timing(console, [item.summary.timing for item in replayed])


@app.command(rich_help_panel=EVERY_DAY)
def ask(
    prompt: Annotated[str, typer.Argument(help="A text to go on with.")],
    version: Annotated[str, typer.Option(help="champion, challenger, base, or a version's number.")] = "champion",
    as_of: Annotated[datetime | None, typer.Option(help="The champion of this moment (UTC) answers.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Ask the model in force, an earlier version, the champion of a moment, or the base.

    As of a moment, a night's promotion counts from the time up to which the night took facts. Where facts about the
    prompt's subject were edited and the answer is none of theirs, the forms that they were edited in are shown.

    Example: `errata ask "The capital of Norway is" --version base`
    """
    require_text(prompt)
    from tasks.ask import about, version_number
    from tasks.ask import ask as run
    from tasks.workspace import open_workspace

    if as_of is not None and version != "champion":
        raise typer.BadParameter(f"--version {version} and --as-of name two versions; give one", param_hint="--as-of")
    moment = as_of and as_of.replace(tzinfo=UTC)
    space = open_workspace()
    (answer,) = run(space, [prompt], version, max_new_tokens, moment)
    meant = f"champion as of {moment:%Y-%m-%d}" if moment else version
    near = about(space, prompt, answer, version, moment)
    if as_json:
        told = {"prompt": prompt, "version": meant, "number": version_number(space, version, moment), "answer": answer}
        edited = [{"fact": fact.fact_id, "asked_as": fact.question, "target": fact.target} for fact in near]
        print_json({**told, "edited": edited})
        return
    out.print(printable(answer), markup=False)
    for fact in near:
        err.print(
            f"a fact about {printable(fact.subject)} was edited ({printable(fact.relation)}); ask it as it was edited: "
            f"errata ask {shlex.quote(printable(fact.question))}",
            soft_wrap=True,
            markup=False,
        )


@app.command(rich_help_panel=EVERY_DAY)
def status(as_json: AsJson = False) -> None:
    """What serves now, what is waiting, and how the last night went.

    Example: `errata status --json`
    """
    from tasks.status import status_of
    from tasks.workspace import open_workspace

    found = status_of(open_workspace())
    if as_json:
        print_json(found)
        return
    facts = ", ".join(f"{count} {kind}" for kind, count in sorted(found["facts"].items())) or "none yet"
    quarantined = ", ".join(f"{count} {reason}" for reason, count in sorted(found["quarantined"].items())) or "none"
    out.print(f"champion     {_version(found['champion'])}")
    out.print(f"challenger   {_version(found['challenger'], nothing='none')}")
    if found["waiting"]["facts"]:
        facts += f"; {found['waiting']['facts']} of them wait, the first for {found['waiting']['first']}"
    for request in found["for_approval"]:
        until = datetime.fromisoformat(request["until"])
        told = f"version {request['version']} waits until {until:%Y-%m-%d %H:%M} UTC: `errata approve`, or with --hold"
        out.print(f"approval     {told}", soft_wrap=True)
    out.print(f"facts        {facts}")
    out.print(f"quarantined  {quarantined}")
    out.print(f"home         {found['home']}", soft_wrap=True, markup=False)
    _tell_left_lying(found["left_lying"])
    for kind, title in (
        ("kept_out", "Facts in quarantine (`errata release` puts one back)"),
        ("not_learned", "Facts that were applied and are not answered"),
    ):
        if found[kind]:
            out.print(table(f"\n{title}", found[kind][:SHOWN]))
        if len(found[kind]) > SHOWN:
            out.print(f"and {len(found[kind]) - SHOWN} more: --json names them all")
    if found["last_night"]:
        out.print(nights_table("\nThe last night", [found["last_night"]]))


@app.command(rich_help_panel=EVERY_DAY)
def history(
    fact: Annotated[str | None, typer.Argument(help="A fact's id; without one, every night and move.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every night, every move of an alias and why, every check of the champion; or all that happened to one fact.

    Example: `errata history`
    """
    from tasks.status import fact_history, night_history
    from tasks.workspace import open_workspace

    if fact:
        told = fact_history(open_workspace(), fact)
        print_json(told) if as_json else out.print(table(told["fact"], told["events"]))
        if told["next"] and not as_json:
            out.print(f"\n{shown(told['next'])}", soft_wrap=True)
        return
    told = night_history(open_workspace())
    if as_json:
        print_json(told)
        return
    out.print(nights_table("Nights", told["nights"]))
    if decided := [row for row in night_rows(told["nights"]) if row.get("decided")]:
        out.print(table("\nDecisions", decided, ("night", "version", "verdict", "decided")))
    out.print(table("\nAlias moves", told["moves"]))
    if told["checks"]:
        out.print(table("\nChecks of the champion", told["checks"]))


@app.command(rich_help_panel=EVERY_DAY)
def report(
    night: Annotated[str, typer.Argument(help="A night's date or its key; default: the last.")] = "last",
    open_it: Annotated[bool, typer.Option("--open", help="Also open it in the browser.")] = False,
) -> None:
    """The path of a night's report: what changed, what failed and by how much, who is to blame.

    Example: `errata report 2018-02-28 --open`
    """
    from tasks.report.find import find_report
    from tasks.workspace import open_workspace

    path = find_report(open_workspace(), night)
    out.print(str(path), soft_wrap=True, markup=False)
    if open_it and typer.launch(path.as_uri()):
        raise SettingsError(f"no browser could be started; open {path} in one")


@app.command(rich_help_panel=UNDO)
def release(
    facts: Annotated[list[str], typer.Argument(help="Ids, or their beginnings, of facts that were turned down.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the ledger.")],
    as_json: AsJson = False,
) -> None:
    """Put facts from quarantine back in the queue: the next night decides about them again.

    Example: `errata release 30ce1b10 --reason "the source confirmed it"`
    """
    from tasks.quarantine import release as run
    from tasks.workspace import open_workspace

    released = run(open_workspace(), facts, reason)
    if as_json:
        print_json([fact.to_dict() | {"fact_id": fact.fact_id} for fact in released])
        return
    for fact in released:
        out.print(f"released {fact.fact_id}: {fact.question} {fact.target}", soft_wrap=True, markup=False)


@app.command(rich_help_panel=SET_UP)
def stats(as_json: AsJson = False) -> None:
    """Compute the base's second-moment statistics now, so that the first night need not.

    Without a corpus in the settings the model writes one by itself. A method that needs none (recipe) has nothing to
    compute. Example: `errata stats`
    """
    from tasks.progress import reporter
    from tasks.statistics import open_corpus
    from tasks.workspace import open_workspace

    space = open_workspace()
    if not space.layers:
        method = space.settings.editor.method
        print_json({"layers": []}) if as_json else out.print(f"The method {method} needs no statistics.")
        return
    with bars():
        made = space.statistics(space.layers, reporter())
        origin = open_corpus(space.settings, space.base).origin
    if as_json:
        print_json({"key": made.key, "layers": list(space.layers), "tokens": made.n_tokens, "corpus": origin})
        return
    out.print(f"{made.n_tokens} tokens at layers {list(space.layers)}: {made.key}")
    out.print(f"corpus: {origin}", soft_wrap=True, markup=False)


@app.command(rich_help_panel=EVERY_DAY)
def ui() -> None:
    """Start Prefect's and MLflow's pages on this workspace; Ctrl-C or SIGTERM ends them.

    Example: `errata ui`
    """
    from tasks.pages import serve_pages

    with serve_pages(load_settings()) as pages:
        for name, url in pages.urls.items():
            out.print(f"{name:<8} {url}")
        out.print("[dim]Ctrl-C ends them[/dim]")
        pages.wait()


@app.command(rich_help_panel=SET_UP)
def deploy(
    file: Annotated[Path | None, typer.Option(help="What to register; default: deployments/prefect.yaml.")] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Keep URLs that carry a password in Secret blocks of the server.")
    ] = False,
) -> None:
    """Register the night, the canary and the other flows with the Prefect server that PREFECT_API_URL names.

    Their runs have all settings that are in force here, wherever the worker runs, and refuse to begin where ledger or
    registry are others. A URL that carries a password is no part of that: the worker has it as a variable of its own
    (ERRATA_LEDGER_URL, MLFLOW_TRACKING_URI), or the server in a Secret block.

    Example: `PREFECT_API_URL=http://127.0.0.1:4200/api errata deploy`
    """
    from tasks.deploy import DEPLOYMENTS, deploy_nights

    for line in deploy_nights(load_settings(), file or DEPLOYMENTS, blocks=blocks):
        out.print(line, soft_wrap=True)


def _version(found: dict | None, nothing: str = "the base") -> str:
    return f"version {found['version']} of {found['night']}, {found['facts']} facts" if found else nothing


def _doubt(right: bool, truth: str) -> str:
    return "" if right else f" [yellow](should be {shown(truth)})[/yellow]"
