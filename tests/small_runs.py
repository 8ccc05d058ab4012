"Runs of a check on the tiny world of conftest.py: what is asked, and its jobs in this process."

from interpkit.gate import jobs
from interpkit.gate.parameters import Adapt, Drift, Preflight, Report
from interpkit.gate.results import finish


def asked_of(tiny, new: str, run, **given) -> Preflight:
    "The question whether `new` may replace v1."
    places = dict(old=tiny.v1, new=new, data=tiny.data, dictionary=tiny.dictionary_folder)
    return Preflight(**places | dict(run=str(run)) | given)


def by_hand(p: Preflight, until: str = "report") -> dict:
    "The jobs in this process, as their notebooks call them; the result of the last."
    for name, job, parameters in (
        ("preflight", jobs.preflight, p),
        ("drift", jobs.drift, Drift(run=p.run)),
        *([("adapt", jobs.adapt, Adapt(run=p.run))] if p.adapt_data else []),
        ("report", jobs.report, Report(run=p.run)),
    ):
        result = finish(parameters, name, job(parameters))
        if name == until:
            break
    return result


def flags(given: dict) -> list[str]:
    "Arguments of a command."
    return [word for name, x in given.items() for word in (f"--{name}", str(x))]


def line(p: Preflight) -> list[str]:
    "The command of a check."
    places = dict(old=p.old, new=p.new, data=p.data, dictionary=p.dictionary, out=p.run)
    return ["check", *flags(places)]
