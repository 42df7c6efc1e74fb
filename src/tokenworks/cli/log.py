"""``tokenworks receipt verify`` and ``tokenworks log audit``: checking what an operator claims, asking nobody.

Both read files only, so a customer runs them on a machine that has never seen the grid.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from rich.console import RenderableType
from rich.text import Text

from tokenworks.cli import given, out
from tokenworks.cli.out import Answer, command
from tokenworks.cli.reach import ask_ledger
from tokenworks.core.errors import BadRequest
from tokenworks.exchange.log.bundle import BUNDLE_BYTES_MAX, Verdict, audit, parse_proof, proof_text, verify_bundle
from tokenworks.exchange.log.checkpoint import CHECKPOINT_BYTES_MAX


@command
def receipt_verify(file: Path, /, *, key: str | None = None, complete: bool = False) -> Answer:
    """Check exported receipts offline. Exit status 1 when something in them is wrong.

    Args:
        file: What ``tokenworks receipt export`` wrote.
        key: The log's verifier key as its operator publishes it, or a file that holds it. Without it the receipts are
            checked with the key that came with them, which shows only that they fit together.
        complete: Also want every receipt of the account between the first and the last, as for an invoice.
    """
    verdict = verify_bundle(_read(file, BUNDLE_BYTES_MAX), _key(key), require_complete=complete)
    return _answer(verdict, "the receipts are as the log has them")


@command
def receipt_export(
    receipts: list[str] | None = None, /, *, account: str | None = None, last: int = 20,
    out_file: Annotated[Path | None, out.OutFile] = None, as_json: out.Json = False,
) -> Answer:  # fmt: skip
    """Write receipts with their proofs to a file that their owner can check without the grid.

    Args:
        receipts: Their ids; without any, the latest of an account.
        account: Whose latest.
        last: How many of the latest.
        out_file: Where to; standard output without it.
    """
    chosen = receipts or ask_ledger("receipts", account=account, limit=last)
    if not chosen:
        raise BadRequest("there is no receipt to export yet")
    text = ask_ledger("receipt_export", receipts=list(chosen))
    if out_file is None:
        sys.stdout.write(text + "\n")
    else:
        given.write(out_file, text.encode())
        out.note(f"{len(chosen)} receipts in {out_file}; check them: tokenworks receipt verify {out_file} --key ...")
    return Answer(None)


@command
def log_checkpoint(*, as_json: out.Json = False) -> Answer:
    """The latest signed checkpoint, on standard output; the key to check it with, on standard error."""
    found = ask_ledger("log_checkpoint")
    if not as_json:
        sys.stdout.write(found["checkpoint"] or "")
        out.note(f"verifier key: {found['verifier']}")
    return Answer(found)


@command
def log_proof(old: int, new: int, /, *, as_json: out.Json = False) -> Answer:
    """The proof that the log of the newer size goes on from the older, on standard output.

    Args:
        old: Size of a checkpoint that was kept.
        new: Size of a newer one.
    """
    hashes = ask_ledger("log_proof", old=old, new=new)
    if not as_json:
        sys.stdout.write(proof_text([bytes.fromhex(node) for node in hashes]))
    return Answer(hashes)


@command
def log_audit(old: Path, new: Path, /, *, key: str, proof: Path | None = None) -> Answer:
    """Check that the log of a newer checkpoint goes on from an older one. Exit status 1 when it does not.

    Args:
        old: A checkpoint that was kept.
        new: A newer one.
        key: The log's verifier key, or a file that holds it.
        proof: The consistency proof between them; not needed when both are of the same size.
    """
    hashes = parse_proof(_text(proof, CHECKPOINT_BYTES_MAX)) if proof else ()
    before, after = _read(old, CHECKPOINT_BYTES_MAX), _read(new, CHECKPOINT_BYTES_MAX)
    verdict = audit(before, after, hashes, _key(key) or "")
    return _answer(verdict, "the log was only appended to")


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


def _answer(verdict: Verdict, good: str) -> Answer:
    found = verdict._asdict()
    if verdict.checkpoint is not None:
        found["checkpoint"] = verdict.checkpoint._asdict() | {"root": verdict.checkpoint.root.hex()}
    return Answer(found, _lines(verdict, good), 0 if verdict.ok else 1)


def _lines(verdict: Verdict, good: str) -> Iterator[RenderableType]:
    marked = ("ok   ", "green", verdict.checked), ("WRONG", "red", verdict.wrong), ("note ", "yellow", verdict.notes)
    for mark, style, lines in marked:
        yield from (Text.assemble((mark, style), "  ", line) for line in lines)
    if verdict.unproven:
        # Whole layer lines for people; --json names every figure.
        groups = dict.fromkeys(".".join(name.split(".")[:2]) for name in verdict.unproven)
        yield Text(f"shown, but in no leaf and so not proven: {', '.join(groups)}")
    yield f"[green]{good}[/green]" if verdict.ok else "[red]do not rely on this: see above[/red]"
