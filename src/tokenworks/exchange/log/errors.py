"""What can be wrong with a receipts log. It stands apart because compiled classes lose their docstrings."""

from __future__ import annotations

from tokenworks.core.errors import BadRequest, DataDirError, NotFound


class NotInTree(BadRequest):
    """There is no proof for that position and size."""

    code = "not_in_tree"


class NodeMissing(DataDirError):
    """The receipts log lost a node of its tree."""

    code = "log_node_missing"


class LogForked(DataDirError):
    """The receipts log on disk is not the one that was signed."""

    code = "log_forked"


class BadBundle(BadRequest):
    """The file is not a bundle of receipts."""

    code = "bad_bundle"


class NotInCheckpoint(NotFound):
    """The receipt is not in a signed checkpoint of the log yet."""

    code = "not_in_checkpoint"
