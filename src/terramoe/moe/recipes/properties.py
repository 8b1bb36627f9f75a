"""The catalogue of properties: what a recipe's ``invariants`` mean, one line each.

``tests/moe/test_properties_*.py`` hold the test of each number on the parts, and run on every recipe what it declares.
T items, E experts, C capacity, k chosen experts of an item.
"""

PROPERTIES: dict[str, str] = {
    "P1": "All executors give the same values and gradients, in float64.",
    "P2": "Renormalised weights of an item sum to 1 before capacity drops any; a drop leaves the others as they are.",
    "P3": "Top-k gives each item exactly k different experts.",
    "P4": "Where experts choose, each has exactly C items; under balanced assignment each has T / E, within one.",
    "P5": "No expert keeps more than C pairs; what is kept was chosen; no two pairs of an expert share a slot below C.",
    "P6": "First choices go before second ones; with priority no item loses its place to one of lower priority.",
    "P7": "Items in another order give the same outputs in that order, unless capacity goes by position.",
    "P8": "Experts in another order, the router's rows with them, give the same outputs.",
    "P9": "An item's output does not depend on its batch mates, unless the part says that it couples items.",
    "P10": "A masked item has no load, no loss, no gradient, and takes no capacity.",
    "P11": "At balance a balance loss is 1 and the squared variation 0, at any scale; zero logits give z = (log E)^2.",
    "P12": "The gradient of a balance loss reaches the router through the probabilities, never through the counts.",
    "P13": "A bias on the choice gets no gradient and enters no weight, and adding a constant to it changes nothing.",
    "P14": "Top-p takes the fewest experts that reach p; a larger threshold tau never takes fewer.",
    "P15": "A softmax over the chosen logits is the renormalised softmax over all.",
    "P16": "Sparsemax sums to 1 with exact zeros, ignores a shift of the logits, and its gradient is right.",
    "P17": "EM never lowers the likelihood, responsibilities sum to 1, and moving the data moves the solution along.",
    "P18": "The density of a mixture integrates to 1.",
    "P19": "What must change nothing changes nothing: upcycling, splitting, zero LoRA, merging of linear experts.",
    "P20": "Entropies and mutual information stay within their bounds, and reach them where they should.",
    "P21": "A routing that is recorded and replayed gives the same result again.",
    "P22": "A hash or a fixed table chooses the same expert in every process.",
    "P23": "Evaluation is deterministic; there is noise in training only.",
    "P24": "An expert that no item chose gets a gradient of exactly zero; in a dense mixture every expert gets one.",
    "P25": "One expert: the layer is that expert. k = E: the layer is the dense mixture.",
    "P26": "An expert without items, no items, fewer items than experts, and ties (the lower index wins) all work.",
    "P27": "Items in bfloat16 are routed in float32.",
    "P28": "Gradient checkpointing counts no item twice.",
    "P29": "Soft MoE: what enters a slot sums to 1 over the items, what an item gets sums to 1 over the slots.",
    "P30": "Experts merged by segments: no item sees a later segment.",
}
