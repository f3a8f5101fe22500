"""What code in a process of its own measures."""

from __future__ import annotations

PEAK_OF_MEMORY = """
import threading

class Peak:
    \"\"\"Looks all the time how much anonymous memory there is; `bytes` is the most that was added.\"\"\"

    def __enter__(self):
        self.before, self.most, self.over = self.now(), 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.watcher.join()
        self.bytes = self.most - self.before

    def watch(self):
        while not self.over.wait(0.001):
            self.most = max(self.most, self.now())

    def now(self):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024
"""
