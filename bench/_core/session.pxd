from libc.stdint cimport int64_t, uint64_t

from bench._core.octets cimport Numbers, Octets
from bench._core.tally cimport Tally


cdef struct Ledger:  # what all sessions of a sink count together
    size_t max_size
    uint64_t connections
    uint64_t messages
    uint64_t recipients
    uint64_t octets
    uint64_t protocol_errors
    double first  # seconds of the monotonic clock: when the first message arrived
    double last
    Tally tally


cdef enum Reading:
    COMMANDS
    CONTENT
    CHUNK


cdef struct Session:
    int descriptor
    Reading reading
    bint sender  # MAIL was accepted
    bint closing  # once `out` is written
    bint last  # this BDAT chunk
    bint oversize
    int64_t chunk  # octets of this BDAT chunk still to come; -1: no chunk was begun
    Octets rest  # an unfinished command line
    Octets body  # with a CRLF in front, so that ".CRLF" as the first line ends the message
    Octets out  # replies
    Numbers recipients  # their hashes


cdef Session *open_session(Ledger *ledger, int descriptor) noexcept nogil
cdef void feed(Session *it, Ledger *ledger, const char *data, size_t length) noexcept nogil
cdef void close_session(Session *it) noexcept nogil
cdef dict counts(Ledger *ledger)
