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
account.command("tokenworks.cli.admin:account_set", name="set", help="Change an account's terms.")
app.command(account)

budget = App(
    name="budget", help="Budgets, nested to any depth; a mandate is one with an expiry.", help_format="plaintext"
)
budget.command(
    "tokenworks.cli.admin:budget_set", name="set", help="Change a budget's limits, or make one below another."
)
budget.command("tokenworks.cli.admin:budget_close", name="close", help="Refuse new requests on a budget.")
app.command(budget)

package = App(name="package", help="Packages of standard tokens.", help_format="plaintext")
package.command("tokenworks.cli.sell:package_list", name="list", help="Packages on offer.")
package.command("tokenworks.cli.sell:package_define", name="define", help="Put a package on offer.")
package.command("tokenworks.cli.sell:package_sell", name="sell", help="Sell a package to an account.")
app.command(package)

grant = App(name="grant", help="Packages that were sold.", help_format="plaintext")
grant.command("tokenworks.cli.sell:grant_list", name="list", help="What accounts have, in the order of use.")
grant.command("tokenworks.cli.sell:grant_refund", name="refund", help="End a grant and give money back.")
grant.command("tokenworks.cli.sell:grant_upgrade", name="upgrade", help="Change a grant to another package.")
app.command(grant)

key = App(name="key", help="API keys.", help_format="plaintext")
key.command("tokenworks.cli.admin:key_list", name="list", help="All keys; never their secrets.")
key.command("tokenworks.cli.admin:key_create", name="create", help="A new key for a budget, shown once.")
key.command("tokenworks.cli.admin:key_revoke", name="revoke", help="Make a key stop working at once.")
app.command(key)

receipt = App(name="receipt", help="Receipts, from agent to watt.", help_format="plaintext")
receipt.command("tokenworks.cli.show:receipt_show", name="show", help="One receipt.")
receipt.command("tokenworks.cli.show:receipt_list", name="list", help="The latest receipts.")
receipt.command("tokenworks.cli.log:receipt_export", name="export", help="Receipts as a file to check offline.")
receipt.command("tokenworks.cli.log:receipt_verify", name="verify", help="Check exported receipts, offline.")
app.command(receipt)

log = App(name="log", help="The signed log of all receipts.", help_format="plaintext")
log.command("tokenworks.cli.log:log_checkpoint", name="checkpoint", help="The latest signed checkpoint and its key.")
log.command("tokenworks.cli.log:log_proof", name="proof", help="Prove that the log was only appended to.")
log.command("tokenworks.cli.log:log_audit", name="audit", help="Check such a proof, offline.")
app.command(log)

entity = App(name="entity", help="Owners of sites that share the pool.", help_format="plaintext")
entity.command("tokenworks.cli.sell:entity_set", name="set", help="Note an owner of sites and its fee.")
app.command(entity)
app.command("tokenworks.cli.sell:statement", name="statement", help="What the pool owes each entity for a period.")
app.command("tokenworks.cli.export:export", name="export", help="Usage, invoices and journals for other programs.")

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
