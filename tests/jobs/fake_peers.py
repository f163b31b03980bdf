"""Several processes of a job as threads, on a store in memory."""

import threading

from leapjax.jobs import job
from leapjax.jobs.peers import Peers


class Store:
    """Keys and values, as jax's service keeps them."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.lock:
            if key in self.values and not allow_overwrite:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value

    def key_value_try_get(self, key):
        with self.lock:
            if key not in self.values:
                raise RuntimeError(f"NOT_FOUND: {key}")
            return self.values[key]

    def key_value_dir_get(self, key):
        with self.lock:
            return [(k, v) for k, v in self.values.items() if k.startswith(key)]


def run_together(models, spec, stops=None, specs=None):
    """Each model in a process; what each returned or raised.

    One that raises says so to the others, as the command does.
    """
    store, count = Store(), len(models)
    ends = [None] * count

    def one(index):
        peers = Peers(store, index, count)
        try:
            own = (specs or [spec] * count)[index]
            stop = stops[index] if stops else lambda: None
            ends[index] = job.run(models[index], own, peers=peers, stop=stop)
        except BaseException as e:
            ends[index] = e
            try:
                store.key_value_set("leapjax/end", f"{index} 2 {type(e).__name__}")
            except RuntimeError:
                pass

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return ends
