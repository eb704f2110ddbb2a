"""Plan, store, worker: what must run, where results live, and how one step runs."""
