"""Foundation models: tuning what is too large to be trained, stacked or sent whole.

Either few weights are trained beside a frozen base (FedIT: LoRA), which is one object in memory for all clients and
never travels; or all weights are, along directions that a seed names, so that only seeds and scalars travel (FedKSeed).
"""
