"""The acting side on Ray: samplers (vLLM) that run tree search, the reward model, the sandbox workers.

Actors here are thin shells around the pure classes of `reasoning`. What may not enter: DeepSpeed, W&B, anything of
`learners` or `cluster`.
"""
