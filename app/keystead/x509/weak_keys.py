"""Detection of weak keys, and of key types and sizes that are not supported. Pure.

Checks of a public key take less than 20 ms of CPU for the longest key, and 50 to 100 ms more for the first key of each
curve in a process; `private_weakness` needs the private key.
Sources: FIPS 186-5 appendix A.1, CVE-2017-15361 (ROCA), Fermat's factorization method, and M. Wiener, "Cryptanalysis of
Short RSA Secret Exponents".
"""

from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from math import isqrt, log2

from cryptography.hazmat.primitives.asymmetric import ec, rsa

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
# OpenSSL does not verify with longer exponents if the modulus has more than 3072 bits.
MAX_EXPONENT_BITS = 64
KINDS = "neither RSA nor on P-256, P-384 or P-521"
FERMAT_ROUNDS = 100
# id-RSASSA-PSS (RFC 4055 section 1.2): `cryptography` re-encodes such keys as rsaEncryption. docs/decisions/0026.
RSA_PSS = "1.2.840.113549.1.1.10"
IS_RSA_PSS = "is an RSA-PSS key (id-RSASSA-PSS), which is not accepted; one of rsaEncryption signs with PSS as well"
NEAR = 2**16


def unfit(public_key: object) -> str:
    """Why the type or size of a public key is not supported, as the predicate of a sentence; empty if it is."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return _rsa_size(public_key)
    fits = isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name in _CURVES
    return "" if fits else f"is {KINDS}"


def weakness(public_key: object) -> str:
    """Why a public key is rejected, including `unfit`, as the predicate of a sentence; empty if accepted."""
    found = unfit(public_key)
    if not found and isinstance(public_key, rsa.RSAPublicKey):
        return _modulus_weakness(public_key.public_numbers().n)
    small = not found and isinstance(public_key, ec.EllipticCurvePublicKey) and _is_small(public_key)
    return _SMALL if small else found


def private_weakness(private_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """As `weakness`, from the private numbers; the text quotes none of them."""
    if isinstance(private_key, rsa.RSAPrivateKey):
        numbers = private_key.private_numbers()
        if numbers.d.bit_length() <= private_key.key_size // 2:
            return "has a small private exponent, which is found from the public key"
        return _NEAR_POWER if any(_is_near_power(factor) for factor in (numbers.p, numbers.q)) else ""
    scalar = private_key.private_numbers().private_value
    return _SMALL if min(scalar, private_key.curve.group_order - scalar).bit_length() < 128 else ""


_SMALL = "has a small private number, which is found by trying them"
_NEAR_POWER = "has a factor within 65536 of a power of a small number, which is found by trying them"


def _rsa_size(public_key: rsa.RSAPublicKey) -> str:
    if not MIN_RSA_BITS <= public_key.key_size <= MAX_RSA_BITS:
        return f"is RSA-{public_key.key_size}; {MIN_RSA_BITS} to {MAX_RSA_BITS} bits are accepted"
    e = public_key.public_numbers().e
    if e < 65537 or e % 2 == 0 or e.bit_length() > MAX_EXPONENT_BITS:
        # Small private exponents (Wiener) need a public exponent about as long as the modulus.
        shown = f"{e}" if e.bit_length() <= MAX_EXPONENT_BITS else f"of {e.bit_length()} bits"
        return f"has the exponent {shown}; an odd one from 65537 on with at most {MAX_EXPONENT_BITS} bits is accepted"
    return ""


def _modulus_weakness(n: int) -> str:
    if any(n % prime == 0 for prime in _PRIMES):
        return "has a small factor"
    if all(n % prime in powers for prime, powers in _ROCA):
        return "has the shape of the keys of Infineon's broken library (ROCA, CVE-2017-15361), which can be factored"
    if _is_fermat(n):
        return "has factors that are close to each other, so that it is factored at once (Fermat)"
    return _NEAR_POWER if any(_has_factor_near(n, power) for power in _powers_around(n.bit_length() // 2)) else ""


def _primes(below: int) -> list[int]:
    return [n for n in range(2, below) if all(n % d for d in range(2, isqrt(n) + 1))]


_PRIMES = _primes(1000)


# ROCA primes are k * M + (65537**a mod M), where M is the product of the first primes, so n is a power of 65537 modulo
# each of these. False positives: one in 10**8 keys.
_ROCA = tuple((p, {pow(65537, k, p) for k in range(p)}) for p in _PRIMES if 2 < p <= 167)


def _is_fermat(n: int, rounds: int = FERMAT_ROUNDS) -> bool:
    """Whether n = a**2 - b**2 for one of the `rounds` smallest candidates a >= sqrt(n)."""
    root = isqrt(n - 1) + 1
    for a in range(root, root + rounds):
        square = a * a - n
        # The last four bits rule out three quarters of all non-squares.
        if square & 15 in {0, 1, 4, 9} and isqrt(square) ** 2 == square:
            return True
    return False


_BASES = (*_primes(256), 6, 10)
_MAX_DIFFERENCE = 4


def _powers_around(bits: int) -> Iterator[int]:
    """Powers of _BASES within _MAX_DIFFERENCE bits of `bits`, since the factors of a key have similar lengths."""
    for base in _BASES:
        power = base ** int((bits - _MAX_DIFFERENCE) / log2(base))
        while power.bit_length() <= bits + _MAX_DIFFERENCE:
            yield power
            power *= base


def _is_near_power(factor: int) -> bool:
    powers = ((base, base ** round(factor.bit_length() / log2(base))) for base in _BASES)
    return any(abs(factor - near) <= NEAR for base, power in powers for near in (power // base, power, power * base))


def _has_factor_near(n: int, power: int) -> bool:
    """Whether power + d divides n for a d with abs(d) <= NEAR, in about 20 steps of Euclid's algorithm.

    Let quotient, rest = divmod(n, power). Then (power + d) * (quotient - x) = n means that d * quotient - x * power
    equals rest up to the small term d * x. The pairs (d, d * quotient - x * power) form a lattice; this finds its point
    closest to (0, rest). Each row is (r, t, s) with r = t * quotient - s * power.
    """
    quotient, rest = divmod(n, power)
    r0, t0, s0, r1, t1, s1 = power, 0, -1, quotient, 1, 0
    while abs(t1) <= 2 * NEAR and r1:
        k = r0 // r1
        r0, t0, s0, r1, t1, s1 = r1, t1, s1, r0 - k * r1, t0 - k * t1, s0 - k * s1
    if r0.bit_length() <= 48:
        # The ratio of the two factors is close to a small fraction, so Fermat's method finds them.
        return _is_fermat(4 * abs(t0 * s0) * n, 1) if s0 else False
    det = r0 * t1 - r1 * t0
    a, b = _rounded_quotient(rest * t1, det), _rounded_quotient(-rest * t0, det)
    d = a * t0 + b * t1
    return abs(d) <= NEAR and n % (power + d) == 0


def _rounded_quotient(number: int, by: int) -> int:
    return (2 * number + by) // (2 * by)


# Baby-step giant-step: k = i * (2 * BABY_STEPS + 1) + j with 0 <= i <= GIANT_STEPS and abs(j) <= BABY_STEPS.
# Each giant step costs every check, the baby steps are made once for a curve: in 50 to 100 ms.
BABY_STEPS, GIANT_STEPS = 8192, 4
# Finds private scalars up to this one, and their negatives modulo the order.
SMALL_SCALARS = GIANT_STEPS * (2 * BABY_STEPS + 1) + BABY_STEPS
_Point = tuple[int, int]


# Curves y**2 = x**3 - 3x + b with the prime of their field (SEC 2).
_CURVES: dict[str, tuple[ec.EllipticCurve, int]] = {
    "secp256r1": (ec.SECP256R1(), 2**256 - 2**224 + 2**192 + 2**96 - 1),
    "secp384r1": (ec.SECP384R1(), 2**384 - 2**128 - 2**96 + 2**32 - 1),
    "secp521r1": (ec.SECP521R1(), 2**521 - 1),
}


def _is_small(public_key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the point is k or -k times the generator for a k <= SMALL_SCALARS."""
    numbers, (_, prime) = public_key.public_numbers(), _CURVES[public_key.curve.name]
    baby, giant = _steps(public_key.curve.name)
    x, y = numbers.x, numbers.y
    if x in baby or any(x == other for other, _ in giant):
        return True
    inverses = _inverses([other - x for other, _ in giant], prime)
    # x coordinates of the point plus and minus each giant step.
    return any(
        (slope * slope - x - other) % prime in baby
        for (other, height), inverse in zip(giant, inverses, strict=True)
        for slope in ((height - y) * inverse, (height + y) * inverse)
    )


@cache
def _steps(name: str) -> tuple[frozenset[int], tuple[_Point, ...]]:
    """The x coordinates of the baby steps, and the points of the giant steps."""
    curve, prime = _CURVES[name]

    def multiples(scalar: int, count: int) -> tuple[_Point, ...]:
        numbers = ec.derive_private_key(scalar, curve).public_key().public_numbers()
        return _multiples((numbers.x, numbers.y), count, prime)

    giant = multiples(2 * BABY_STEPS + 1, GIANT_STEPS)
    return frozenset(x for x, _ in multiples(1, BABY_STEPS)), giant


def _multiples(point: _Point, count: int, prime: int) -> tuple[_Point, ...]:
    """The multiples 1 to `count` of a point, where `count` is a power of two; each round doubles the list."""
    found = [point]
    while len(found) < count:
        x, y = found[-1]
        inverses = _inverses([other - x for other, _ in found[:-1]] + [2 * y], prime)
        slopes = [(height - y) * i for (_, height), i in zip(found, inverses[:-1], strict=False)]
        slopes.append(3 * (x * x - 1) * inverses[-1])
        for slope, (other, _) in zip(slopes, list(found), strict=True):
            third = (slope * slope - x - other) % prime
            found.append((third, (slope * (x - third) - y) % prime))
    return tuple(found)


def _inverses(numbers: list[int], prime: int) -> list[int]:
    """The inverses of non-zero numbers with one modular inversion (Montgomery's trick)."""
    products = list(accumulate(numbers, lambda a, b: a * b % prime))
    inverse, found = pow(products[-1], -1, prime), []
    for at in range(len(numbers) - 1, -1, -1):
        found.append(inverse * products[at - 1] % prime if at else inverse)
        inverse = inverse * numbers[at] % prime
    return found[::-1]
