/* One kernel for convolutions and dense layers: uint8 activations, int8 weights, int32 sums, float rescaling, rounding
 * half to even as onnxruntime does. Activations lie channel last, the observation channel first. Four channels are
 * computed at a time; with the DSP extension two products go into one instruction (SMLAD). */
#ifndef KERNELS_H
#define KERNELS_H

#include <stdint.h>
#include <string.h>

typedef struct {
    int height, width, channels; /* of the output */
    int rows, run;               /* of a filter: rows of bytes that lie together in the input, run a multiple of 4 */
    int step_y, step_x;          /* bytes of the input from one output to the next below, and to the right */
    const uint16_t *row;         /* [rows] where in the input each starts */
    const int8_t *weights;       /* [channels/4 rounded up][rows][run/4][4 channels][4]; zeros beyond what there is */
    const int32_t *bias;         /* [channels rounded up to 4] with the input's zero point worked in */
    const float *scale;          /* [channels rounded up to 4] input's scale x weights' / output's, 1 for the head's */
    int zero;                    /* the output's zero point; unused in the head */
} layer;

static inline uint8_t requantised(int32_t sum, float scale, int zero) {
    const float low = (float)-zero, high = (float)(255 - zero);
    float value = (float)sum * scale;
    value = value < low ? low : value > high ? high : value;
    value += 12582912.0f; /* 1.5 * 2^23: the addition rounds to an integer, which is then in the low bits */
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint8_t)(bits - 0x4B400000 + zero);
}

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
                                                                  const int8_t *weights, int32_t sum[4]) {
    memcpy(sum, l->bias + channel, 4 * sizeof *sum);
    for (int i = 0; i < l->rows; i++) weights = add_row(place + l->row[i], l->run, weights, sum);
    return weights;
}

/* Computes a layer. Up to 3 bytes behind the last output are written too. */
static inline __attribute__((always_inline)) void compute(const layer *l, const uint8_t *in, uint8_t *out) {
    for (int y = 0; y < l->height; y++)
        for (int x = 0; x < l->width; x++, out += l->channels) {
            const uint8_t *place = in + y * l->step_y + x * l->step_x;
            const int8_t *weights = l->weights;
            for (int channel = 0; channel < l->channels; channel += 4) {
                int32_t sum[4];
                weights = sum_up(l, channel, place, weights, sum);
                for (int i = 0; i < 4; i++) out[channel + i] = requantised(sum[i], l->scale[channel + i], l->zero);
            }
        }
}

/* Computes the last layer, a dense one whose outputs stay float. */
static inline __attribute__((always_inline)) void compute_head(const layer *l, const uint8_t *in, float *out) {
    const int8_t *weights = l->weights;
    for (int channel = 0; channel < l->channels; channel += 4) {
        int32_t sum[4];
        weights = sum_up(l, channel, in, weights, sum);
        for (int i = 0; i < 4 && channel + i < l->channels; i++)
            out[channel + i] = (float)sum[i] * l->scale[channel + i];
    }
}

#endif
