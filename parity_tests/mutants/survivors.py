"""Why a mutant survives: what it changes can't be seen from outside, or is not for the ladder to see."""

_FALL = "Equivalent: at the first step of the fall, which it leaves out, the fall is still one, linear or cosine."

WHY: dict[str, str] = {
    "jaxgpt/optimizer.py:31:18:comparison:0": _FALL,
    "torch_ref/optimizer.py:26:11:comparison:0": _FALL,
    "jaxgpt/muon.py:157:68:constant:0": "Equivalent: a float32 has eight bits of exponent, so nine take nothing away.",
    "torch_ref/muon.py:135:19:call:0": "Equivalent: add_ widens what it adds to the weight's dtype by itself.",
    "jaxgpt/model.py:168:20:call:0": "One rounding to bfloat16 less before a sum in the residual stream's dtype: "
    "nothing in float32 and float64, and in bfloat16 closer to the exact sum, which every rung allows.",
    "jaxgpt/model.py:322:62:constant:1": "Equivalent: nobody takes the second copy of the last norm's output, and its "
    "gradient is zero.",
    "jaxgpt/tokens.py:87:32:constant:1": "Equivalent: NumPy takes any negative length for the one that is missing.",
}
"""A mutant's id -> the reason, in one sentence."""
