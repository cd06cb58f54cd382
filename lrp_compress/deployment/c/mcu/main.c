/* An example: reads observations from standard input, one after the other as policy.h describes them, and prints for
 * each the outputs and the best action. */
#include "policy.h"
#include <stdio.h>

static policy_observations observation;
static float outputs[1][POLICY_ACTIONS];

int main(void) {
    while (fread(observation, sizeof observation, 1, stdin) == 1) {
        int best = 0;
        policy(observation, outputs);
        for (int i = 0; i < POLICY_ACTIONS; i++) {
            printf("%.9g ", outputs[0][i]);
            if (outputs[0][i] > outputs[0][best]) best = i;
        }
        printf("action %d\n", best);
    }
    return 0;
}
