"""Attach a masker to a network: `attach` and its hooks, `detach`, `disabled`, and the trace of `record`."""

from .attach_detach import attach, attachment_of, detach, disabled, reattach, record
from .attachment import Attachment
from .trace import Trace

__all__ = ["Attachment", "Trace", "attach", "attachment_of", "detach", "disabled", "reattach", "record"]
