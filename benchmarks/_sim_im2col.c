/* Convolutions and dense layers as im2col and SGEMM: what a BLAS library alone makes of a network.
 *
 * Compiled for the simulated board and called by _sim_guest.py, which hands over the SGEMM.
 * Batch 1, NCHW. Neither bias nor activation.
 */
#include <stdint.h>
#include <string.h>

struct layer {
    int64_t groups, out_channels, in_channels; /* channels of one group */
    int64_t in_height, in_width, out_height, out_width;
    int64_t kernel_height, kernel_width, stride_height, stride_width, pad_top, pad_left;
    const float *data, *weight;
    float *out;
};

typedef void (*sgemm)(
    int order, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
    const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
enum { ROW_MAJOR = 101, PLAIN = 111 };

/* One row of the column matrix: the pixels that one weight meets. */
static float *unfold_row(
    const struct layer *l, const float *plane, int64_t ky, int64_t kx, float *to)
{
    for (int64_t y = 0; y < l->out_height; y++, to += l->out_width) {
        int64_t row = y * l->stride_height + ky - l->pad_top;
        if (row < 0 || row >= l->in_height) {
            memset(to, 0, (size_t)l->out_width * sizeof *to);
            continue;
        }
        const float *from = plane + row * l->in_width;
        int64_t left = kx - l->pad_left, step = l->stride_width;
        int64_t first = left < 0 ? (-left + step - 1) / step : 0;
        int64_t end = (l->in_width - left + step - 1) / step;
        if (end > l->out_width) {
            end = l->out_width;
        }
        int64_t x = 0;
        for (; x < first && x < l->out_width; x++) {
            to[x] = 0;
        }
        if (step == 1 && end > x) {
            memcpy(to + x, from + x + left, (size_t)(end - x) * sizeof *to);
            x = end;
        }
        for (; x < end; x++) {
            to[x] = from[x * step + left];
        }
        for (; x < l->out_width; x++) {
            to[x] = 0;
        }
    }
    return to;
}

static int pointwise(const struct layer *l)
{
    return l->kernel_height == 1 && l->kernel_width == 1 && l->stride_height == 1 &&
           l->stride_width == 1 && l->pad_top == 0 && l->pad_left == 0 &&
           l->in_height == l->out_height && l->in_width == l->out_width;
}

/* `column` has room for the largest column matrix. */
void tvmx_im2col(const struct layer *layers, int64_t count, float *column, sgemm multiply)
{
    for (const struct layer *l = layers; l < layers + count; l++) {
        int64_t pixels = l->out_height * l->out_width, plane = l->in_height * l->in_width;
        int64_t depth = l->in_channels * l->kernel_height * l->kernel_width;
        for (int64_t g = 0; g < l->groups; g++) {
            const float *data = l->data + g * l->in_channels * plane;
            if (!pointwise(l)) {
                float *to = column;
                for (int64_t c = 0; c < l->in_channels; c++) {
                    for (int64_t ky = 0; ky < l->kernel_height; ky++) {
                        for (int64_t kx = 0; kx < l->kernel_width; kx++) {
                            to = unfold_row(l, data + c * plane, ky, kx, to);
                        }
                    }
                }
                data = column;
            }
            multiply(
                ROW_MAJOR, PLAIN, PLAIN, l->out_channels, pixels, depth, 1,
                l->weight + g * l->out_channels * depth, depth, data, pixels, 0,
                l->out + g * l->out_channels * pixels, pixels);
        }
    }
}
