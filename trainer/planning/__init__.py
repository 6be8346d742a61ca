"""What a training stage will need, by arithmetic, before it runs: operations, memory, storage, time, money."""
