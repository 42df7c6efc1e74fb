"""``tokenworks receipt verify`` and ``tokenworks log audit``: checking what an operator claims, asking nobody.

Both read files only, so a customer runs them on a machine that has never seen the grid.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tokenworks.cli import out
from tokenworks.cli.talk import Json
from tokenworks.core.errors import BadRequest
from tokenworks.datadir import data_directory, write_private
from tokenworks.exchange.ask import ask
from tokenworks.exchange.log.bundle import BUNDLE_BYTES_MAX, Verdict, audit, parse_proof, proof_text, verify_bundle
from tokenworks.exchange.log.checkpoint import CHECKPOINT_BYTES_MAX


def receipt_verify(file: Path, /, *, key: str | None = None, complete: bool = False, as_json: Json = False) -> int:
    """Check exported receipts offline. Exit status 1 when something in them is wrong.

    Parameters
    ----------
    file:
        What ``tokenworks receipt export`` wrote.
    key:
        The log's verifier key as its operator publishes it, or a file that holds it. Without it the receipts are
        checked with the key that came with them, which shows only that they fit together.
    complete:
        Also want every receipt of the account between the first and the last, as for an invoice.
    """
    verdict = verify_bundle(_read(file, BUNDLE_BYTES_MAX), _key(key), require_complete=complete)
    return _show(verdict, "the receipts are as the log has them", as_json=as_json)


def receipt_export(
    receipts: list[str] | None = None,
    /,
    *,
    account: str | None = None,
    last: int = 20,
    out_file: Annotated[Path | None, Parameter(name="--out")] = None,
    as_json: Json = False,
) -> int:
    """Write receipts with their proofs to a file that their owner can check without the grid.

    Parameters
    ----------
    receipts:
        Their ids; without any, the latest of an account.
    account:
        Whose latest.
    last:
        How many of the latest.
    out_file:
        Where to; standard output without it.
    """
    data = data_directory()
    chosen = receipts or ask(data, "receipts", account=account, limit=last)
    if not chosen:
        raise BadRequest("there is no receipt to export yet")
    text = ask(data, "receipt_export", receipts=list(chosen))
    if out_file is None:
        sys.stdout.write(text + "\n")
    else:
        try:
            write_private(out_file, text.encode())
        except OSError as error:
            raise BadRequest(f"cannot write {out_file}: {error.strerror}") from None
        out.note(f"{len(chosen)} receipts in {out_file}; check them: tokenworks receipt verify {out_file} --key ...")
    return 0


def log_checkpoint(*, as_json: Json = False) -> int:
    """The latest signed checkpoint, on standard output; the key to check it with, on standard error."""
    found = ask(data_directory(), "log_checkpoint")
    if as_json:
        out.put_json(found)
    else:
        sys.stdout.write(found["checkpoint"] or "")
        out.note(f"verifier key: {found['verifier']}")
    return 0


def log_proof(old: int, new: int, /, *, as_json: Json = False) -> int:
    """The proof that the log of the newer size goes on from the older, on standard output.

    Parameters
    ----------
    old:
        Size of a checkpoint that was kept.
    new:
        Size of a newer one.
    """
    hashes = ask(data_directory(), "log_proof", old=old, new=new)
    if as_json:
        out.put_json(hashes)
    else:
        sys.stdout.write(proof_text([bytes.fromhex(node) for node in hashes]))
    return 0


def log_audit(old: Path, new: Path, /, *, key: str, proof: Path | None = None, as_json: Json = False) -> int:
    """Check that the log of a newer checkpoint goes on from an older one. Exit status 1 when it does not.

    Parameters
    ----------
    old:
        A checkpoint that was kept.
    new:
        A newer one.
    key:
        The log's verifier key, or a file that holds it.
    proof:
        The consistency proof between them; not needed when both are of the same size.
    """
    hashes = parse_proof(_text(proof, CHECKPOINT_BYTES_MAX)) if proof else ()
    before, after = _read(old, CHECKPOINT_BYTES_MAX), _read(new, CHECKPOINT_BYTES_MAX)
    verdict = audit(before, after, hashes, _key(key) or "")
    return _show(verdict, "the log was only appended to", as_json=as_json)


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(bytes_max + 1)  # one more: what is too long is refused, not cut
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from error


def _text(path: Path, bytes_max: int) -> str:
    try:
        return _read(path, bytes_max).decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{path} is not UTF-8") from None


def _key(key: str | None) -> str | None:
    """The key's text, or what is in the file of that name. A verifier key has two plus signs; file names have not."""
    if key is None or key.count("+") >= 2:
        return key
    return _text(Path(key), CHECKPOINT_BYTES_MAX)


def _show(verdict: Verdict, good: str, *, as_json: bool) -> int:
    status = 0 if verdict.ok else 1
    if as_json:
        found = verdict._asdict()
        if verdict.checkpoint is not None:
            found["checkpoint"] = verdict.checkpoint._asdict() | {"root": verdict.checkpoint.root.hex()}
        out.put_json(found)
        return status
    console = out.console()

    def put(mark: str, style: str, lines: tuple[str, ...]) -> None:
        for line in lines:
            console.print(mark, style=style, end="  ")
            console.print(line, markup=False)

    put("ok   ", "green", verdict.checked)
    put("WRONG", "red", verdict.wrong)
    put("note ", "yellow", verdict.notes)
    if verdict.unproven:
        # Whole layer lines for people; --json names every figure.
        groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in verdict.unproven)
        console.print(f"shown, but in no leaf and so not proven: {', '.join(groups)}", markup=False)
    console.print(f"[green]{good}[/green]" if verdict.ok else "[red]do not rely on this: see above[/red]")
    return status
