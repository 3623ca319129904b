"""A receiving SMTP or LMTP server with chosen misbehaviour: a tool for demo, tests and bench."""

from fastmta.sink.behaviour import FATES, KEYWORDS, STEPS, Behaviour
from fastmta.sink.server import Sink
from fastmta.sink.tally import Counts, Mail, Mbox

__all__ = ["FATES", "KEYWORDS", "STEPS", "Behaviour", "Counts", "Mail", "Mbox", "Sink"]
