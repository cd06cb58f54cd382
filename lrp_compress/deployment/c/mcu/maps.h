/* What lies between layers with weights. Bytes stand for scale x (byte - zero point); where they are computed with, it is
 * in float, in onnxruntime's order of operations, and rounded half to even as it does. Maps lie channel last. */
#ifndef MAPS_H
#define MAPS_H

#include "kernels.h"

typedef struct {
    int height, width, channels;       /* of the output */
    int given_height, given_width;     /* of the input */
    int kernel_y, kernel_x, stride_y, stride_x, top, left; /* of the window; top and left are the padding */
    float given_scale, scale;          /* of a mean: what bytes of the input and of the output stand for */
    int given_zero, zero;
} pool;

typedef struct {
    int count, terms;
    const float *given_scale; /* [terms] */
    const int *given_zero;    /* [terms] */
    float scale;
    int zero;
} addition;

/* Observations in float become bytes. */
static inline void quantise(const float *in, int count, float scale, int zero, uint8_t *out) {
    for (int i = 0; i < count; i++) out[i] = rounded(in[i] / scale, zero);
}

/* An activation, in place too. */
static inline void look_up(const uint8_t table[256], int count, const uint8_t *in, uint8_t *out) {
    for (int i = 0; i < count; i++) out[i] = table[in[i]];
}

/* A sum of values, in place of any of them too. */
static inline void add(const addition *a, const uint8_t *const in[], uint8_t *out) {
    for (int i = 0; i < a->count; i++) {
        float sum = (float)(in[0][i] - a->given_zero[0]) * a->given_scale[0];
        for (int term = 1; term < a->terms; term++)
            sum += (float)(in[term][i] - a->given_zero[term]) * a->given_scale[term];
        out[i] = rounded(sum / a->scale, a->zero);
    }
}

/* The part of a side, from *first to before the returned one, that a window covers. */
static inline int covered(int start, int kernel, int side, int *first) {
    *first = start < 0 ? 0 : start;
    return start + kernel < side ? start + kernel : side;
}

/* The largest of each window. */
static inline void max_pool(const pool *p, const uint8_t *in, uint8_t *out) {
    for (int y = 0; y < p->height; y++)
        for (int x = 0; x < p->width; x++, out += p->channels) {
            int y0, x0;
            const int y1 = covered(y * p->stride_y - p->top, p->kernel_y, p->given_height, &y0);
            const int x1 = covered(x * p->stride_x - p->left, p->kernel_x, p->given_width, &x0);
            memset(out, 0, (size_t)p->channels);
            for (int i = y0; i < y1; i++)
                for (int j = x0; j < x1; j++) {
                    const uint8_t *place = in + (i * p->given_width + j) * p->channels;
                    for (int channel = 0; channel < p->channels; channel++)
                        if (place[channel] > out[channel]) out[channel] = place[channel];
                }
        }
}

/* The mean of each window. The zero point is added before the rounding. */
static inline void mean_pool(const pool *p, const uint8_t *in, uint8_t *out) {
    for (int y = 0; y < p->height; y++)
        for (int x = 0; x < p->width; x++, out += p->channels)
            for (int channel = 0; channel < p->channels; channel++) {
                const uint8_t *window = in + (y * p->stride_y * p->given_width + x * p->stride_x) * p->channels + channel;
                float sum = 0;
                for (int i = 0; i < p->kernel_y; i++)
                    for (int j = 0; j < p->kernel_x; j++)
                        sum += p->given_scale * (float)(window[(i * p->given_width + j) * p->channels] - p->given_zero);
                out[channel] = rounded(sum / (float)(p->kernel_y * p->kernel_x) / p->scale + (float)p->zero, 0);
            }
}

#endif
