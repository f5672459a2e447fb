"""The method, pure Python: problems, steps, trees, search, rewards, labels, estimators.

Everything here is data and arithmetic. What may not enter: Ray, torch, vLLM, DeepSpeed, any process or socket. From
`sandbox` only its records are taken (cases, limits, verdicts, results), never its pool.
"""
