"""The benchmarks of mailboxes: what they report is what happened."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench import delivery_local, pop3, processes
from bench.load import Result, body_of, HEAD
from bench.pop3_load import Load, Maildrops
from bench.relay import Run
from fastmta.config import Endpoint
from tests.support import run
