/* Convolutions in groups, depthwise ones above all: each output channel reads the channels of its group alone. */
#ifndef GROUPED_H
#define GROUPED_H

#include "kernels.h"
#include "maps.h"

typedef struct {
    int height, width, channels;   /* of the output */
    int given_height, given_width; /* of the input */
    int plane, pixel;              /* of the input: bytes from one channel to the next, and from one pixel to the next */
    int inputs, outputs;           /* channels of a group that are read and written */
    int kernel_y, kernel_x, stride_y, stride_x, top, left; /* of the window; top and left are the padding */
    const int8_t *weights;         /* [channels][kernel_y][kernel_x][inputs] */
    const int32_t *bias;           /* [channels] */
    const float *scale;            /* [channels] input's scale x weights' / output's */
    int given_zero, zero;          /* zero points; the input's is the padding, and adds nothing */
} grouped;

/* Computes a layer. */
static inline void compute_grouped(const grouped *g, const uint8_t *in, uint8_t *out) {
    for (int y = 0; y < g->height; y++)
        for (int x = 0; x < g->width; x++) {
            const int top = y * g->stride_y - g->top, left = x * g->stride_x - g->left;
            int y0, x0;
            const int y1 = covered(top, g->kernel_y, g->given_height, &y0);
            const int x1 = covered(left, g->kernel_x, g->given_width, &x0);
            const int8_t *weights = g->weights;
            for (int channel = 0; channel < g->channels; channel++, weights += g->kernel_y * g->kernel_x * g->inputs) {
                const uint8_t *group = in + channel / g->outputs * g->inputs * g->plane;
                int32_t sum = g->bias[channel];
                for (int i = y0; i < y1; i++)
                    for (int j = x0; j < x1; j++) {
                        const uint8_t *place = group + (i * g->given_width + j) * g->pixel;
                        const int8_t *weight = weights + ((i - top) * g->kernel_x + j - left) * g->inputs;
                        for (int k = 0; k < g->inputs; k++)
                            sum += (place[k * g->plane] - g->given_zero) * weight[k];
                    }
                *out++ = requantised(sum, g->scale[channel], g->zero);
            }
        }
}

#endif
