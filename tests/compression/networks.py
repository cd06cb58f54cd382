"""Small networks of every kind that the tests of pruning share: their widths and heads."""

CONVS = {"conv1": 8, "conv2": 12, "conv3": 10}
NETWORKS = {
    "q": ({**CONVS, "fc1": 20}, "q"),
    "policy, two dense layers": ({**CONVS, "fc1": 20, "fc2": 15}, "policy"),
    "dueling": ({**CONVS, "value_fc1": 20, "advantage_fc1": 18}, "dueling"),
    "dueling, two dense layers": (
        {**CONVS, "value_fc1": 20, "value_fc2": 9, "advantage_fc1": 18, "advantage_fc2": 10},
        "dueling",
    ),
}
