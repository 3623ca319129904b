"""Mailboxes, who comes in, and what is done to mail on its way in."""

from grafana.layout import Board, Chart, Row
from grafana.queries import Query, now, quantiles, rate, select

CERTIFICATES = select("fastmta_tls_certificate_expiry_timestamp_seconds")

MAILBOXES = Board(
    "fastmta-mailboxes",
    "fastmta: mailboxes and access",
    "Local delivery, POP3, logins, limits, TLS in, signatures, suppression.",
    [
        Row(
            "Mailboxes",
            [
                Chart(
                    "Into mailboxes",
                    "Attempts to put a message into a mailbox, by their end.",
                    "cps",
                    [rate("fastmta_mailbox_deliveries_total", by="end")],
                ),
                Chart(
                    "On the way",
                    "Messages on their way to mailboxes.",
                    "short",
                    [now("fastmta_mailbox_deliveries_waiting", "waiting")],
                ),
                Chart(
                    "Recipients here",
                    "Nobody's, forwarded elsewhere, and messages that came back in a loop.",
                    "cps",
                    [
                        rate("fastmta_unknown_recipients_total", "nobody's"),
                        rate("fastmta_forwarded_total", "forwarded"),
                        rate("fastmta_forwarding_loops_total", "loops"),
                    ],
                ),
                Chart(
                    "Time of a commit of the mailboxes",
                    "From its begin to its flush.",
                    "s",
                    quantiles("fastmta_mail_commit_seconds", 0.5, 0.99),
                ),
                Chart(
                    "The mailboxes' file",
                    "In use, and what it may grow to.",
                    "bytes",
                    [
                        now("fastmta_mail_file_bytes", "in use", of="max"),
                        now("fastmta_mail_map_bytes", "at the most", of="max"),
                    ],
                ),
            ],
        ),
        Row(
            "POP3",
            [
                Chart(
                    "Sessions",
                    "Open now.",
                    "short",
                    [now("fastmta_pop3_sessions_open", "open")],
                ),
                Chart(
                    "What happens",
                    "Sessions, refusals, logins to a maildrop in use, and messages deleted.",
                    "cps",
                    [
                        rate("fastmta_pop3_sessions_total", "sessions"),
                        rate("fastmta_pop3_sessions_refused_total", "sessions refused"),
                        rate("fastmta_pop3_rejected_total", "commands refused"),
                        rate("fastmta_pop3_in_use_total", "in use"),
                        rate("fastmta_pop3_deleted_total", "deleted"),
                    ],
                ),
                Chart(
                    "Octets out",
                    "Written to POP3 clients.",
                    "Bps",
                    [rate("fastmta_pop3_bytes_total", "out")],
                ),
            ],
        ),
        Row(
            "Access",
            [
                Chart(
                    "Logins",
                    "Attempts to log in, by their end.",
                    "cps",
                    [rate("fastmta_logins_total", by="end")],
                ),
                Chart(
                    "Passwords",
                    "Known to be right without hashing; and those that are being checked.",
                    "short",
                    [
                        rate("fastmta_logins_remembered_total", "remembered, a second"),
                        now("fastmta_logins_waiting", "waiting"),
                    ],
                ),
                Chart(
                    "Sessions in",
                    "SMTP sessions a second, and how often they pause until mail has left.",
                    "cps",
                    [
                        rate("fastmta_smtp_in_sessions_total", "accepted"),
                        rate("fastmta_smtp_in_sessions_refused_total", "refused"),
                        rate("fastmta_smtp_in_pauses_total", "pauses"),
                    ],
                ),
                Chart(
                    "Rate limits",
                    "Refused, by limit.",
                    "cps",
                    [rate("fastmta_limits_refused_total", by="limit")],
                ),
                Chart(
                    "Who is counted",
                    "Addresses, networks and accounts.",
                    "short",
                    [now("fastmta_limits_subjects", "subjects", of="max")],
                ),
                Chart(
                    "Checks in the DNS",
                    "Clients by what came of it.",
                    "cps",
                    [rate("fastmta_checks_total", by="result")],
                ),
            ],
        ),
        Row(
            "TLS and signatures",
            [
                Chart(
                    "TLS in",
                    "Handshakes with clients.",
                    "cps",
                    [
                        rate("fastmta_tls_in_handshakes_total", "handshakes"),
                        rate("fastmta_tls_in_resumed_total", "resumed"),
                        rate("fastmta_tls_in_failed_total", "failed"),
                    ],
                ),
                Chart(
                    "Certificates",
                    "Time that is left to each.",
                    "s",
                    [Query(f"min by (certificate) ({CERTIFICATES}) - time()", "{{certificate}}")],
                ),
                Chart(
                    "DKIM",
                    "Signatures by algorithm, and messages that cannot be signed.",
                    "cps",
                    [
                        rate("fastmta_dkim_signatures_total", by="algorithm"),
                        rate("fastmta_dkim_unsigned_total", "not signed"),
                    ],
                ),
                Chart(
                    "Time to sign",
                    "From the end of a message until it is signed.",
                    "s",
                    quantiles("fastmta_dkim_seconds", 0.5, 0.99),
                ),
                Chart(
                    "Suppression",
                    "Recipients suppressed, entries added, and reports that came in.",
                    "cps",
                    [
                        rate("fastmta_suppressed_total", "suppressed: {{action}}", by="action"),
                        rate("fastmta_suppression_added_total", "added: {{reason}}", by="reason"),
                        rate("fastmta_reports_received_total", "report: {{kind}}", by="kind"),
                    ],
                ),
                Chart(
                    "Policy",
                    "Calls of hooks that failed.",
                    "cps",
                    [rate("fastmta_policy_failures_total", by="hook")],
                ),
            ],
        ),
    ],
)
