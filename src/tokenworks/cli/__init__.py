"""The command line. Every command is its own lazily imported function, so ``--help`` loads none of them.

Owns words on a screen and exit statuses; asks the running grid or its books, and decides nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App

from tokenworks import __version__
from tokenworks.core.errors import TokenworksError

COMMANDS = {
    "up": ("up", "Run a grid on this machine, in the foreground."),
    "chat": ("talk", "Ask a model something and see what it cost."),
    "status": ("talk", "Show the running grid: replicas, ledger, load."),
    "doctor": ("doctor", "Check this machine and its grid; say how to mend what is wrong."),
    "books": ("show", "Trial balance of money, standard tokens and energy."),
    "cake": ("show", "What a million tokens cost, layer by layer."),
    "calibrate": ("calibrate", "Measure a running engine, and where its time goes."),
    "perf": ("perf", "What a model would do on a device, modelled."),
    "export": ("export", "Usage, invoices and journals for other programs."),
    "drill": ("drill", "Play a grid event and show the answer, second by second."),
    "account list": ("admin", "All accounts with what they spent."),
    "account create": ("admin", "Open an account with a budget."),
    "account set": ("admin", "Change an account's terms."),
    "budget set": ("admin", "Change a budget's limits, or make one below another."),
    "budget close": ("admin", "Refuse new requests on a budget."),
    "price show": ("price", "Rates and prices now or at a time."),
    "price sign": ("price", "Sign a price list, offline."),
    "price verify": ("price", "Check a price list's signatures, offline."),
    "package list": ("sell", "Packages on offer."),
    "package define": ("sell", "Put a package on offer."),
    "package sell": ("sell", "Sell a package to an account."),
    "grant list": ("sell", "What accounts have, in the order of use."),
    "grant refund": ("sell", "End a grant and give money back."),
    "grant upgrade": ("sell", "Change a grant to another package."),
    "key list": ("admin", "All keys; never their secrets."),
    "key create": ("admin", "A new key for a budget, shown once."),
    "key revoke": ("admin", "Make a key stop working at once."),
    "receipt show": ("show", "One receipt."),
    "receipt list": ("show", "The latest receipts."),
    "receipt export": ("log", "Receipts as a file to check offline."),
    "receipt verify": ("log", "Check exported receipts, offline."),
    "log checkpoint": ("log", "The latest signed checkpoint and its key."),
    "log proof": ("log", "Prove that the log was only appended to."),
    "log audit": ("log", "Check such a proof, offline."),
    "entity set": ("sell", "Note an owner of sites and its fee."),
    "statement list": ("clearing", "Statements, and what has none yet."),
    "statement show": ("clearing", "One statement."),
    "statement issue": ("clearing", "State a period that is over."),
    "statement dispute": ("clearing", "Refuse a part of a statement."),
    "statement answer": ("clearing", "Accept or reject a dispute."),
    "statement net": ("clearing", "Set statements off against each other."),
    "statement settle": ("clearing", "Note that a pair's figure was paid."),
    "site status": ("drill", "Power, limits, meters and the last interval."),
    "model list": ("model", "The models that can be fetched."),
    "model pull": ("model", "Fetch a model file and check it."),
    "device list": ("device", "What this machine has; what is new or lost."),
    "device catalogue": ("device", "Accelerators with their figures."),
}
"""The words of a command: the module whose function bears them, and what it does."""
GROUPS = {
    "account": "Accounts and their budgets.",
    "budget": "Budgets, nested to any depth; a mandate is one with an expiry.",
    "price": "What tokens cost, and price lists that are signed.",
    "package": "Packages of standard tokens.",
    "grant": "Packages that were sold.",
    "key": "API keys.",
    "receipt": "Receipts, from agent to watt.",
    "log": "The signed log of all receipts.",
    "entity": "Owners of sites that share the pool.",
    "statement": "What entities owe each other.",
    "site": "Sites: their power and their meters.",
    "model": "Models that the embedded engine can run.",
    "device": "The devices of this machine, and what is known of others.",
}
app = App(
    name="tokenworks",
    help="Runs a network of AI token factories as one public utility.",
    version=__version__,
    help_format="plaintext",
)
_groups = {name: App(name=name, help=about, help_format="plaintext") for name, about in GROUPS.items()}
for _words, (_module, _about) in COMMANDS.items():
    _group, _, _name = _words.rpartition(" ")
    _function = f"tokenworks.cli.{_module}:{_words.replace(' ', '_')}"
    _groups.get(_group, app).command(_function, name=_name, help=_about)
for _app in _groups.values():
    app.command(_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; errors are one sentence and a hint on stderr, and a status that is not 0."""
    try:
        result = app(list(arguments) if arguments is not None else None)
    except TokenworksError as error:
        sys.stderr.write(f"tokenworks: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"  hint: {error.hint}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    return result if isinstance(result, int) else 0
