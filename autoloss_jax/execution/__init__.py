"""Two ways to run a loss: exactly, one compiled function each, or many in one batched program."""
