"""Where Newton starts: the root of l + exp(l) = Y, without an exponential.

numba's cache knows of changes to ``kernel.py`` alone; after one here that file has to be touched.
"""

COEFFICIENTS = (
    -0.567188,
    0.638613,
    -0.0735484,
    0.000800638,
    0.00156692,
    -7.34982e-05,
    -3.54818e-05,
)
"""Polynomial in Y, from the constant up, within 0.0007 of the root between `LOW` and `HIGH`.

Below, Y itself is near the root; above, log(Y) less log(Y) / (1 + Y).
"""

LOW, HIGH = -4.0, 3.0
