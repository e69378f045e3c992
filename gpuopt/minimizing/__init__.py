"""`gpuopt.minimize` and `gpuopt.scipy_method`: any optimizer on a function with a gradient, by scipy's conventions.

`loop.py` is the function, `points.py` what it knows of arrays, `stopping.py` when it ends and how that is called, `answers.py` what
it asks of the caller's functions, `scipy_method.py` scipy's protocol. Knows no rule and no kernel.
"""
