"""The log of one data directory: its name, secret and signing key, and the checkpoints it signs.

Made once, readable only by the owner. The last checkpoint also lies beside the database, so that a database that was
replaced by an older or another one is noticed (``LogForked``) and does not go on under the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenworks.core.errors import DataDirError
from tokenworks.core.ids import Entropy, random_bytes
from tokenworks.exchange.log.checkpoint import SigningKey, load_key, new_key, save_key, sign
from tokenworks.exchange.log.files import create_private, read_private
from tokenworks.exchange.log.leaves import Identity, load_secret, new_secret
from tokenworks.exchange.log.merkle import consistency_proof
from tokenworks.exchange.log.plain import Object
from tokenworks.exchange.log.writer import LogStore, LogWriter, export, refuse_fork


class LogKeeper:
    """Opens a data directory's log over its tables. Raises DataDirError or LogForked when it is not what was signed."""

    def __init__(self, data: Path, tables: LogStore, entropy: Entropy = random_bytes) -> None:
        self._data = data
        name_file, secret_file, key_file = data / "log.name", data / "log.secret", data / "log.key"
        if not name_file.exists():
            if tables.size():
                raise DataDirError(f"{name_file} is missing but the log has leaves", hint="restore log.* from a backup")
            for left in (secret_file, key_file):  # of a first start that was cut short: nothing was signed with them
                left.unlink(missing_ok=True)
            name = f"tokenworks.local/{entropy(6).hex()}"
            new_secret(secret_file, entropy)
            save_key(key_file, new_key(name, entropy))
            create_private(name_file, name.encode())
        name = read_private(name_file).decode()
        self.key: SigningKey = load_key(key_file, name)
        self._identity = Identity(name, load_secret(secret_file))
        self._signed = -1
        self.reload(tables)
        self._publish(self.key.verifier().text() + "\n", "log.pub")

    def reload(self, tables: LogStore) -> None:
        """Begin again from what is committed."""
        last = self._data / "log.checkpoint"
        if last.exists():
            self._signed = refuse_fork(tables, last.read_text(), self.key).size
        self._tables = tables
        self.writer = LogWriter(self._identity, tables)

    def checkpoint(self) -> str | None:
        """Sign what is committed; None when it is signed already."""
        if self.writer.size == self._signed:
            return None
        note = sign(self.writer.checkpoint(), self.key)
        self._publish(note, "log.checkpoint")
        self._signed = self.writer.size
        return note

    @property
    def size(self) -> int:
        """Leaves under the last checkpoint."""
        return self._signed

    def proof(self, old: int, new: int) -> list[bytes]:
        """The consistency proof between two sizes."""
        return list(consistency_proof(self._tables, old, new))

    def bundle(self, account: str, views: Sequence[Object]) -> str:
        """What a customer takes away and checks offline."""
        return export(self._identity, self._tables, account, views, self.key, self.writer.checkpoint())

    def _publish(self, text: str, name: str) -> None:
        temporary = self._data.joinpath(f".{name}")
        temporary.write_text(text)
        temporary.replace(self._data.joinpath(name))
