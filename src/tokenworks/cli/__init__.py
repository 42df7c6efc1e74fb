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
app.command(
    "tokenworks.cli.calibrate:calibrate", name="calibrate", help="Measure a running engine, and where its time goes."
)
app.command("tokenworks.cli.perf:perf", name="perf", help="What a model would do on a device, modelled.")

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

price = App(name="price", help="What tokens cost, and price lists that are signed.", help_format="plaintext")
price.command("tokenworks.cli.price:price_show", name="show", help="Rates and prices now or at a time.")
price.command("tokenworks.cli.price:price_sign", name="sign", help="Sign a price list, offline.")
price.command("tokenworks.cli.price:price_verify", name="verify", help="Check a price list's signatures, offline.")
app.command(price)

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

statement = App(name="statement", help="What entities owe each other.", help_format="plaintext")
statement.command("tokenworks.cli.clearing:statement_list", name="list", help="Statements, and what has none yet.")
statement.command("tokenworks.cli.clearing:statement_show", name="show", help="One statement.")
statement.command("tokenworks.cli.clearing:statement_issue", name="issue", help="State a period that is over.")
statement.command("tokenworks.cli.clearing:statement_dispute", name="dispute", help="Refuse a part of a statement.")
statement.command("tokenworks.cli.clearing:statement_answer", name="answer", help="Accept or reject a dispute.")
statement.command("tokenworks.cli.clearing:statement_net", name="net", help="Set statements off against each other.")
statement.command("tokenworks.cli.clearing:statement_settle", name="settle", help="Note that a pair's figure was paid.")
app.command(statement)
app.command("tokenworks.cli.export:export", name="export", help="Usage, invoices and journals for other programs.")

site = App(name="site", help="Sites: their power and their meters.", help_format="plaintext")
site.command("tokenworks.cli.drill:site_status", name="status", help="Power, limits, meters and the last interval.")
app.command(site)
app.command("tokenworks.cli.drill:drill", name="drill", help="Play a grid event and show the answer, second by second.")

model = App(name="model", help="Models that the embedded engine can run.", help_format="plaintext")
model.command("tokenworks.cli.model:model_list", name="list", help="The models that can be fetched.")
model.command("tokenworks.cli.model:model_pull", name="pull", help="Fetch a model file and check it.")
app.command(model)

device = App(name="device", help="The devices of this machine, and what is known of others.", help_format="plaintext")
device.command("tokenworks.cli.device:device_list", name="list", help="What this machine has; what is new or lost.")
device.command("tokenworks.cli.device:device_catalogue", name="catalogue", help="Accelerators with their figures.")
app.command(device)


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
