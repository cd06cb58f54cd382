/* One kernel for convolutions and dense layers: uint8 activations, int8 weights, int32 sums, float rescaling, rounding
 * half to even as onnxruntime does. Activations lie channel last, a picture observed channel first. Four channels are
 * computed at a time; with the DSP extension two products go into one instruction (SMLAD). */
#ifndef KERNELS_H
#define KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    int height, width, channels; /* of the output */
    int rows, run;               /* of a filter: rows of bytes that lie together in the input, run a multiple of 4 */
    int step_y, step_x;          /* bytes of the input from one output to the next below, and to the right */
    const uint32_t *row;         /* [rows] where in the input each starts */
    const int8_t *weights;       /* [channels/4 rounded up][rows][run/4][4 channels][4]; zeros beyond what there is */
    const int32_t *bias;         /* [channels rounded up to 4] with the input's zero point worked in */
    const float *scale;          /* [channels rounded up to 4] input's scale x weights' / output's, 1 for the head's */
    int zero;                    /* the output's zero point; unused in the head */
} layer;

/* What a padded layer needs besides. */
typedef struct {
    int given_height, given_width; /* of the input */
    int planes, pixel;             /* of the input: maps that lie one after the other, and bytes of a pixel in each */
    int kernel_y, kernel_x, stride_y, stride_x, top, left; /* of the window; top and left are the padding */
    int given_zero;                /* the input's zero point, which is the padding */
    const uint32_t *row;           /* [rows] where in a copied window each starts */
} border;

static inline uint8_t rounded(float value, int zero) {
    const float low = (float)-zero, high = (float)(255 - zero);
    value = value < low ? low : value > high ? high : value;
    value += 12582912.0f; /* 1.5 * 2^23: the addition rounds to an integer, which is then in the low bits */
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint8_t)(bits - 0x4B400000 + zero);
}

static inline uint8_t requantised(int32_t sum, float scale, int zero) { return rounded((float)sum * scale, zero); }

#ifdef __ARM_FEATURE_DSP
static inline uint32_t word(const void *bytes) {
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}
/* Bytes 0 and 2, or 1 and 3, as two halfwords. */
static inline uint32_t even_u8(uint32_t x) { __asm__("uxtb16 %0, %1" : "=r"(x) : "r"(x)); return x; }
static inline uint32_t odd_u8(uint32_t x) { __asm__("uxtb16 %0, %1, ror #8" : "=r"(x) : "r"(x)); return x; }
static inline uint32_t even_s8(uint32_t x) { __asm__("sxtb16 %0, %1" : "=r"(x) : "r"(x)); return x; }
static inline uint32_t odd_s8(uint32_t x) { __asm__("sxtb16 %0, %1, ror #8" : "=r"(x) : "r"(x)); return x; }
static inline int32_t smlad(uint32_t x, uint32_t y, int32_t sum) {
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(x), "r"(y));
    return sum;
}
static inline int32_t dot4(uint32_t even, uint32_t odd, uint32_t weights, int32_t sum) {
    return smlad(odd, odd_s8(weights), smlad(even, even_s8(weights), sum));
}
/* Adds the products of a row to the sums of four channels. */
static inline const int8_t *add_row(const uint8_t *in, int run, const int8_t *weights, int32_t sum[4]) {
    int32_t a = sum[0], b = sum[1], c = sum[2], d = sum[3];
    for (const uint8_t *end = in + run; in < end; in += 4, weights += 16) {
        const uint32_t x = word(in), even = even_u8(x), odd = odd_u8(x);
        a = dot4(even, odd, word(weights), a);
        b = dot4(even, odd, word(weights + 4), b);
        c = dot4(even, odd, word(weights + 8), c);
        d = dot4(even, odd, word(weights + 12), d);
    }
    sum[0] = a, sum[1] = b, sum[2] = c, sum[3] = d;
    return weights;
}
#else
static inline const int8_t *add_row(const uint8_t *in, int run, const int8_t *weights, int32_t sum[4]) {
    for (const uint8_t *end = in + run; in < end; in += 4, weights += 16)
        for (int channel = 0; channel < 4; channel++)
            for (int i = 0; i < 4; i++) sum[channel] += in[i] * weights[4 * channel + i];
    return weights;
}
#endif

/* The sums of four channels of a layer at one place of its input; returns the weights of the next four. Up to 3 bytes
 * behind the input are read, to no effect: the weights there are zeros. */
static inline __attribute__((always_inline)) const int8_t *sum_up(const layer *l, int channel, const uint8_t *place,
                                                                  const uint32_t *row, const int8_t *weights,
                                                                  int32_t sum[4]) {
    memcpy(sum, l->bias + channel, 4 * sizeof *sum);
    for (int i = 0; i < l->rows; i++) weights = add_row(place + row[i], l->run, weights, sum);
    return weights;
}

/* Computes all channels at one place. Up to 3 bytes behind the output are written too. */
static inline __attribute__((always_inline)) void compute_place(const layer *l, const uint8_t *place,
                                                                const uint32_t *row, uint8_t *out) {
    const int8_t *weights = l->weights;
    for (int channel = 0; channel < l->channels; channel += 4) {
        int32_t sum[4];
        weights = sum_up(l, channel, place, row, weights, sum);
        for (int i = 0; i < 4; i++) out[channel + i] = requantised(sum[i], l->scale[channel + i], l->zero);
    }
}

/* Computes a layer. */
static inline __attribute__((always_inline)) void compute(const layer *l, const uint8_t *in, uint8_t *out) {
    for (int y = 0; y < l->height; y++)
        for (int x = 0; x < l->width; x++, out += l->channels)
            compute_place(l, in + y * l->step_y + x * l->step_x, l->row, out);
}

/* Copies a window that reaches over the border. */
static inline void copy_window(const border *b, int run, const uint8_t *in, int y, int x, uint8_t *window) {
    const int first = x < 0 ? -x : 0, end = b->given_width - x < b->kernel_x ? b->given_width - x : b->kernel_x;
    for (int plane = 0; plane < b->planes; plane++)
        for (int i = y; i < y + b->kernel_y; i++, window += run) {
            memset(window, b->given_zero, (size_t)run);
            if (i >= 0 && i < b->given_height)
                memcpy(window + first * b->pixel,
                       in + ((plane * b->given_height + i) * b->given_width + x + first) * b->pixel,
                       (size_t)((end - first) * b->pixel));
        }
}

/* Computes a padded layer: windows that reach over the border are copied. Such layers are many and alike, so that code
 * for each of them would be large, and take long to compile. */
#ifdef __clang__
static inline __attribute__((noinline))
#else
static inline __attribute__((noinline, noclone))
#endif
void compute_padded(const layer *l, const border *b, const uint8_t *in, uint8_t *window, uint8_t *out) {
    for (int y = 0; y < l->height; y++)
        for (int x = 0; x < l->width; x++, out += l->channels) {
            const int top = y * b->stride_y - b->top, left = x * b->stride_x - b->left;
            if (top >= 0 && left >= 0 && top + b->kernel_y <= b->given_height && left + b->kernel_x <= b->given_width)
                compute_place(l, in + (top * b->given_width + left) * b->pixel, l->row, out);
            else {
                copy_window(b, l->run, in, top, left, window);
                compute_place(l, window, b->row, out);
            }
        }
}

/* Computes the last layer, a dense one whose outputs stay float. */
static inline __attribute__((always_inline)) void compute_head(const layer *l, const uint8_t *in, float *out) {
    const int8_t *weights = l->weights;
    for (int channel = 0; channel < l->channels; channel += 4) {
        int32_t sum[4];
        weights = sum_up(l, channel, in, l->row, weights, sum);
        for (int i = 0; i < 4 && channel + i < l->channels; i++)
            out[channel + i] = (float)sum[i] * l->scale[channel + i];
    }
}

#endif
