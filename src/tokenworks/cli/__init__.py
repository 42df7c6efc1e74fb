"""The command line. Every command is its own lazily imported function, so ``--help`` loads none of them.

Owns words on a screen and exit statuses; asks the running grid or its books, and decides nothing itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App

from tokenworks import __version__
from tokenworks.core.errors import TokenworksError

app = App(
    name="tokenworks",
    help="Runs a network of AI token factories as one public utility.",
    version=__version__,
    help_format="plaintext",
)
app.command("tokenworks.cli.up:up", name="up", help="Run a grid on this machine, in the foreground.")
app.command("tokenworks.cli.talk:chat", name="chat", help="Ask a model something and see what it cost.")
app.command("tokenworks.cli.talk:status", name="status", help="Show the running grid: replicas, ledger, load.")
app.command(
    "tokenworks.cli.doctor:doctor",
    name="doctor",
    help="Check this machine and its grid; say how to mend what is wrong.",
)
app.command("tokenworks.cli.show:books", name="books", help="Trial balance of money, standard tokens and energy.")
app.command("tokenworks.cli.show:cake", name="cake", help="What a million tokens cost, layer by layer.")

account = App(name="account", help="Accounts and their budgets.", help_format="plaintext")
account.command("tokenworks.cli.admin:account_list", name="list", help="All accounts with what they spent.")
account.command("tokenworks.cli.admin:account_create", name="create", help="Open an account with a budget.")
account.command(
    "tokenworks.cli.admin:account_budget", name="budget", help="Change a budget's limits, or make one below another."
)
app.command(account)

key = App(name="key", help="API keys.", help_format="plaintext")
key.command("tokenworks.cli.admin:key_list", name="list", help="All keys; never their secrets.")
key.command("tokenworks.cli.admin:key_create", name="create", help="A new key for a budget, shown once.")
key.command("tokenworks.cli.admin:key_revoke", name="revoke", help="Make a key stop working at once.")
app.command(key)

receipt = App(name="receipt", help="Receipts, from agent to watt.", help_format="plaintext")
receipt.command("tokenworks.cli.show:receipt_show", name="show", help="One receipt.")
receipt.command("tokenworks.cli.show:receipt_list", name="list", help="The latest receipts.")
app.command(receipt)

model = App(name="model", help="Models that the embedded engine can run.", help_format="plaintext")
model.command("tokenworks.cli.model:model_list", name="list", help="The models that can be fetched.")
model.command("tokenworks.cli.model:model_pull", name="pull", help="Fetch a model file and check it.")
app.command(model)


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


if __name__ == "__main__":
    sys.exit(main())
