"""Writes the pages that were left for later, in several processes where they are many."""

from __future__ import annotations

import sys
import warnings
from multiprocessing import get_context

from kdbench.base.machine import cores
from leaderboard.site import Job, Site

#: Fewest jobs of a process.
SHARE = 500


def finish(site: Site) -> None:
    """Does all jobs of a site.

    Processes are forked, since they need all that the site is made of; elsewhere than on Linux, where that is not safe,
    there is one.
    """
    workers = min(cores(), len(site.jobs) // SHARE)
    if workers < 2 or sys.platform != "linux":
        for work, item in site.jobs:
            work(site, item)
    else:
        site.known()
        with warnings.catch_warnings():
            # Of numpy's threads, which these processes, that write text, do not use.
            warnings.simplefilter("ignore", DeprecationWarning)
            with get_context("fork").Pool(workers, _begin, (site,)) as pool:
                site.pages += sum(pool.imap_unordered(_do, site.jobs))
    site.jobs.clear()


_site: Site


def _begin(site: Site) -> None:
    global _site
    _site = site


def _do(job: Job) -> int:
    before = _site.pages
    job.work(_site, job.item)
    return _site.pages - before
