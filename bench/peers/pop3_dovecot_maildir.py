"""The same with Maildirs, which other programs can read too: a file for each message."""

from functools import partial

from bench.peers import pop3_dovecot

missing, version = pop3_dovecot.missing, pop3_dovecot.version
fill = pop3_dovecot.fill_maildirs
running = partial(pop3_dovecot.running, location="maildir:~/Maildir")
