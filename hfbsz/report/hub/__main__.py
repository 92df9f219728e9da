"""The process that pushes one run: `python -m hfbsz.report.hub REQUEST` prints an Outcome; both are JSON.

It ends when its time is up, even if the run was killed.
"""

import json
import os
import sys
import threading
from dataclasses import asdict

from hfbsz.report.hub.request import Outcome, Request
from hfbsz.report.hub.upload import upload


def main() -> None:
    """Push, and print what came of it."""
    request = Request.parse(sys.argv[1])
    timer = threading.Timer(request.seconds, os._exit, [1])
    timer.daemon = True
    timer.start()
    outcome: Outcome = upload(request)
    print(json.dumps(asdict(outcome)), flush=True)
    os._exit(0)  # not held up by a connection that a thread of huggingface_hub still has open


if __name__ == "__main__":
    main()
