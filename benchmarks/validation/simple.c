/*
 * Simple kernels in TVM's calling convention, good and bad: matrix products, streams of several
 * sizes, reductions, transposition, pooling, pointers. The arguments are inputs, then the output.
 */
#include <math.h>
#include <stdint.h>

#include <tvm/ffi/c_api.h>

#define DATA(type, i) ((type *)((const DLTensor *)args[i].v_ptr)->data)
#define SIZE(i, dimension) (((const DLTensor *)args[i].v_ptr)->shape[dimension])
#define KERNEL(name)                                                                               \
    int __tvm_ffi_##name(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result);     \
    int __tvm_ffi_##name(void *self, const TVMFFIAny *args, int32_t count, TVMFFIAny *result)
#define UNUSED (void)self, (void)count, (void)result

/* Rows by columns: every sum waits for the one before it, and b is read down its columns. */
KERNEL(gemm_dot)
{
    UNUSED;
    const float *a = DATA(float, 0), *b = DATA(float, 1);
    float *c = DATA(float, 2);
    int64_t m = SIZE(0, 0), k = SIZE(0, 1), n = SIZE(1, 1);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++) {
                sum += a[i * k + p] * b[p * n + j];
            }
            c[i * n + j] = sum;
        }
    }
    return 0;
}

/* Rows of b are added to a row of c, which goes to memory and back for each. */
KERNEL(gemm_rows)
{
    UNUSED;
    const float *a = DATA(float, 0), *b = DATA(float, 1);
    float *restrict c = DATA(float, 2);
    int64_t m = SIZE(0, 0), k = SIZE(0, 1), n = SIZE(1, 1);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            c[i * n + j] = 0;
        }
        for (int64_t p = 0; p < k; p++) {
            for (int64_t j = 0; j < n; j++) {
                c[i * n + j] += a[i * k + p] * b[p * n + j];
            }
        }
    }
    return 0;
}

KERNEL(triad)
{
    UNUSED;
    const float *a = DATA(float, 0), *b = DATA(float, 1);
    float *restrict c = DATA(float, 2);
    for (int64_t i = 0, n = SIZE(2, 0); i < n; i++) {
        c[i] = a[i] + 3.0f * b[i];
    }
    return 0;
}

/* Without -ffast-math: one chain of additions. */
KERNEL(sum)
{
    UNUSED;
    const float *a = DATA(float, 0);
    float total = 0;
    for (int64_t i = 0, n = SIZE(0, 0); i < n; i++) {
        total += a[i];
    }
    *DATA(float, 1) = total;
    return 0;
}

/* The same with 32 sums of their own. */
KERNEL(sum_wide)
{
    UNUSED;
    const float *a = DATA(float, 0);
    float part[32] = {0}, total = 0;
    for (int64_t i = 0, n = SIZE(0, 0); i < n; i += 32) {
        for (int j = 0; j < 32; j++) {
            part[j] += a[i + j];
        }
    }
    for (int j = 0; j < 32; j++) {
        total += part[j];
    }
    *DATA(float, 1) = total;
    return 0;
}

KERNEL(sum_bytes)
{
    UNUSED;
    const int8_t *a = DATA(int8_t, 0);
    int32_t total = 0;
    for (int64_t i = 0, n = SIZE(0, 0); i < n; i++) {
        total += a[i];
    }
    *DATA(int32_t, 1) = total;
    return 0;
}

/* Root and quotient: units that are busy for several cycles with each operation. */
KERNEL(normalise)
{
    UNUSED;
    const float *a = DATA(float, 0);
    float *restrict b = DATA(float, 1);
    for (int64_t i = 0, n = SIZE(1, 0); i < n; i++) {
        b[i] = a[i] / __builtin_sqrtf(a[i] * a[i] + 1.0f);
    }
    return 0;
}

KERNEL(quantise)
{
    UNUSED;
    const float *a = DATA(float, 0);
    int8_t *restrict b = DATA(int8_t, 1);
    for (int64_t i = 0, n = SIZE(1, 0); i < n; i++) {
        int32_t rounded = (int32_t)(a[i] * 40.0f);
        rounded = rounded > 127 ? 127 : rounded;
        b[i] = (int8_t)(rounded < -128 ? -128 : rounded);
    }
    return 0;
}

KERNEL(transpose)
{
    UNUSED;
    const float *a = DATA(float, 0);
    float *restrict b = DATA(float, 1);
    int64_t rows = SIZE(0, 0), columns = SIZE(0, 1);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            b[j * rows + i] = a[i * columns + j];
        }
    }
    return 0;
}

/* 2x2, stride 2, rows of channels. */
KERNEL(maxpool)
{
    UNUSED;
    const float *a = DATA(float, 0);
    float *restrict b = DATA(float, 1);
    int64_t height = SIZE(1, 0), width = SIZE(1, 1), channels = SIZE(1, 2);
    int64_t row = 2 * width * channels;
    for (int64_t i = 0; i < height; i++) {
        for (int64_t j = 0; j < width; j++) {
            const float *from = a + 2 * i * row + 2 * j * channels;
            float *restrict to = b + (i * width + j) * channels;
            for (int64_t c = 0; c < channels; c++) {
                float left = from[c] > from[row + c] ? from[c] : from[row + c];
                float right = from[channels + c] > from[row + channels + c]
                                  ? from[channels + c] : from[row + channels + c];
                to[c] = left > right ? left : right;
            }
        }
    }
    return 0;
}

/* Each element says which one is next. */
KERNEL(chase)
{
    UNUSED;
    const int64_t *next = DATA(int64_t, 0);
    int64_t at = 0;
    for (int64_t i = 0, n = SIZE(0, 0); i < n; i += 8) {
        at = next[at];
    }
    *DATA(int64_t, 1) = at;
    return 0;
}
