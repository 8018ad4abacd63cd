// What the image tower computes between its products, on NVIDIA GPUs. Activations are bfloat16 in memory and f32 in registers;
// matrices lie row by row. `kernels.rs` launches these, says what shapes they take, and is the only caller.

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

// Sixteen bytes: what a thread reads or writes at a time.
struct alignas(16) Eight {
    __nv_bfloat162 pairs[4];
};

__device__ __forceinline__ void load(const bf16 *from, float *to) {
    Eight eight = *reinterpret_cast<const Eight *>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = __bfloat1622float2(eight.pairs[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}

__device__ __forceinline__ void load(const float *from, float *to) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
    }
}

__device__ __forceinline__ void store(bf16 *to, const float *from) {
    Eight eight;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        eight.pairs[i] = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    }
    *reinterpret_cast<Eight *>(to) = eight;
}

__device__ __forceinline__ void store(float *to, const float *from) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
    }
}

// Bytes (n, 3, size, size) to patches (n · grid², inputs) of what they are more than `middle`, each in the order of the
// convolution's weights, and zeros behind them. A block a patch; pairs of values, since patches and images are an even number of
// pixels wide.
extern "C" __global__ void unfold(const uint8_t *pixels, bf16 *patches, int size, int patch, int grid, int inputs, int middle) {
    const uchar2 *from = reinterpret_cast<const uchar2 *>(pixels);
    __nv_bfloat162 *to = reinterpret_cast<__nv_bfloat162 *>(patches) + (size_t)blockIdx.x * (inputs / 2);
    int place = blockIdx.x % (grid * grid), image = blockIdx.x / (grid * grid);
    int top = place / grid * patch, left = place % grid * patch;
    int line = patch / 2, plane = patch * line;
    for (int i = threadIdx.x; i < inputs / 2; i += blockDim.x) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(0.0f, 0.0f);
        if (i < 3 * plane) {
            int channel = i / plane, y = i % plane / line, x = i % line;
            size_t row = ((size_t)image * 3 + channel) * size + top + y;
            uchar2 bytes = from[row * (size / 2) + left / 2 + x];
            pair = __floats2bfloat162_rn(bytes.x - middle, bytes.y - middle);
        }
        to[i] = pair;
    }
}

// bfloat16 to f32, eight values a thread.
extern "C" __global__ void widen(const bf16 *from, float *to, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at < count) {
        float values[8];
        load(from + at, values);
        store(to + at, values);
    }
}

__device__ __forceinline__ float over_warp(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(0xffffffff, value, lanes);
    }
    return value;
}

// Values of a row that a warp holds at a time.
constexpr int STEP = 32 * 8;
// Widest row: STEP · STEPS.
constexpr int STEPS = 8;

// A row that a warp holds, normalised and written. In two passes: the variance in one loses digits where the mean is far from
// zero, as in some of CLIP's channels.
template <typename To>
__device__ __forceinline__ void normalise(float row[STEPS][8], To *to, const float *weight, const float *bias, int width,
                                          float epsilon) {
    int first = threadIdx.x % 32 * 8;
    float sum = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step * STEP + first < width) {
#pragma unroll
            for (int i = 0; i < 8; i++) sum += row[step][i];
        }
    }
    float mean = over_warp(sum) / width, squares = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step * STEP + first < width) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float apart = row[step][i] - mean;
                squares += apart * apart;
            }
        }
    }
    float scale = rsqrtf(over_warp(squares) / width + epsilon);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int column = step * STEP + first;
        if (column < width) {
            float weights[8], biases[8];
            load(weight + column, weights);
            load(bias + column, biases);
#pragma unroll
            for (int i = 0; i < 8; i++) row[step][i] = (row[step][i] - mean) * scale * weights[i] + biases[i];
            store(to + column, row[step]);
        }
    }
}

// Rows `apart` values from one another to rows of `width`. A warp a row.
extern "C" __global__ void layer_norm(const bf16 *x, bf16 *to, const float *weight, const float *bias, int rows, int width,
                                      size_t apart, float epsilon) {
    int at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= rows) return;
    float row[STEPS][8];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int column = step * STEP + threadIdx.x % 32 * 8;
        if (column < width) load(x + at * apart + column, row[step]);
    }
    normalise(row, to + (size_t)at * width, weight, bias, width, epsilon);
}

// Patches, projected, (n · (tokens − 1), width) to normalised tokens (n · tokens, width), class token first: `positions` are
// added, of which the class token's is the token itself. A warp a token.
extern "C" __global__ void embed(const bf16 *patches, bf16 *to, const float *positions, const float *weight, const float *bias,
                                 int rows, int tokens, int width, float epsilon) {
    int at = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= rows) return;
    int image = at / tokens, token = at % tokens;
    const bf16 *patch = patches + ((size_t)image * (tokens - 1) + token - 1) * width;
    float row[STEPS][8];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int column = step * STEP + threadIdx.x % 32 * 8;
        if (column < width) {
            load(positions + (size_t)token * width + column, row[step]);
            if (token > 0) {
                float values[8];
                load(patch + column, values);
#pragma unroll
                for (int i = 0; i < 8; i++) row[step][i] += values[i];
            }
        }
    }
    normalise(row, to + (size_t)at * width, weight, bias, width, epsilon);
}

struct QuickGelu {
    static __device__ __forceinline__ float of(float x) { return x / (1.0f + __expf(-1.702f * x)); }
};

struct Gelu {
    static __device__ __forceinline__ float of(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
};

// In place, eight values a thread.
template <typename Activation> __device__ __forceinline__ void activate(bf16 *x, size_t count) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at < count) {
        float values[8];
        load(x + at, values);
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = Activation::of(values[i]);
        store(x + at, values);
    }
}

extern "C" __global__ void quick_gelu(bf16 *x, size_t count) { activate<QuickGelu>(x, count); }
extern "C" __global__ void gelu(bf16 *x, size_t count) { activate<Gelu>(x, count); }

// Attention without its matrix, in the manner of FlashAttention-2 (arXiv 2307.08691): a block has 64 queries of a head, a warp
// 16 of them, and goes over the keys 64 at a time, the next ones being copied meanwhile. Products are the tensor cores'
// (m16n8k16); in its registers a thread holds, of two rows eight apart, two neighbouring columns of every eight.
constexpr int ROWS = 64;

// Sixteen bytes, of which the first `bytes` are copied and the others are zero.
__device__ __forceinline__ void copy_async(void *to, const void *from, int bytes) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int OPEN> __device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(OPEN) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t to[4], const bf16 *from) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t to[4], const bf16 *from) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void multiply(float sum[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t packed(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}

// 2ˣ, to the last bit or two.
__device__ __forceinline__ float exp2_fast(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x));
    return power;
}

// 64 rows of a head, `apart` values from one another, into shared memory; rows from `rows` on are zeros.
template <int D> __device__ __forceinline__ void fetch(bf16 (*to)[D + 8], const bf16 *from, size_t apart, int rows) {
    constexpr int PIECES = D / 8;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += blockDim.x) {
        int row = i / PIECES, column = i % PIECES * 8;
        bool is_there = row < rows;
        copy_async(&to[row][column], from + (is_there ? row : 0) * apart + column, is_there ? 16 : 0);
    }
}

// Queries, keys and values (n · tokens, 3 · heads · D), side by side, to (n · tokens, heads · D), for the first `queries`
// tokens of each image. `scale` is log₂ e / √D.
template <int D>
__device__ __forceinline__ void attend(const bf16 *qkv, bf16 *to, int tokens, int heads, int queries, float scale) {
    // Two of keys and two of values; queries pass through the second of keys. Rows are padded against bank conflicts.
    __shared__ alignas(16) bf16 keys[2][ROWS][D + 8];
    __shared__ alignas(16) bf16 values[2][ROWS][D + 8];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first = blockIdx.x * ROWS, width = heads * D;
    bool works = first + warp * 16 < queries;
    size_t apart = 3 * width;
    const bf16 *of_q = qkv + (size_t)blockIdx.z * tokens * apart + blockIdx.y * D;
    const bf16 *of_k = of_q + width, *of_v = of_k + width;

    fetch<D>(keys[1], of_q + first * apart, apart, queries - first);
    fetch<D>(keys[0], of_k, apart, tokens);
    fetch<D>(values[0], of_v, apart, tokens);
    close_copies();
    await_copies<0>();
    __syncthreads();
    uint32_t q[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_matrices(q[k], &keys[1][warp * 16 + lane % 16][k * 16 + lane / 16 * 8]);
    __syncthreads();

    float mixed[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, sums[2] = {0.0f, 0.0f};
    int blocks = (tokens + ROWS - 1) / ROWS;
    for (int block = 0; block < blocks; block++) {
        int now = block % 2, next = (block + 1) * ROWS;
        if (next < tokens) {
            fetch<D>(keys[1 - now], of_k + next * apart, apart, tokens - next);
            fetch<D>(values[1 - now], of_v + next * apart, apart, tokens - next);
        }
        close_copies();

        // Keys that are there; in sixteens without any, and in warps without queries, nothing is computed.
        int left = works ? min(ROWS, tokens - block * ROWS) : 0;
        float scores[ROWS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
#pragma unroll
            for (int pair = 0; pair < ROWS / 16; pair++) {
                if (pair * 16 < left) {
                    uint32_t found[4];
                    int row = pair * 16 + lane / 16 * 8 + lane % 8, column = k * 16 + lane / 8 % 2 * 8;
                    load_matrices(found, &keys[now][row][column]);
                    multiply(scores[2 * pair], q[k], found[0], found[1]);
                    multiply(scores[2 * pair + 1], q[k], found[2], found[3]);
                }
            }
        }
        if (left < ROWS) {
#pragma unroll
            for (int tile = 0; tile < ROWS / 8; tile++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (tile * 8 + lane % 4 * 2 + i % 2 >= left) scores[tile][i] = -INFINITY;
                }
            }
        }
        // The softmax of what was seen so far: what was mixed before shrinks as the largest score grows.
        if (left > 0) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float largest = most[half];
#pragma unroll
                for (int tile = 0; tile < ROWS / 8; tile++) {
                    largest = fmaxf(largest, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
                }
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
                float shrink = exp2_fast((most[half] - largest) * scale), sum = 0.0f, off = largest * scale;
                most[half] = largest;
#pragma unroll
                for (int tile = 0; tile < ROWS / 8; tile++) {
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; i++) {
                        scores[tile][i] = exp2_fast(fmaf(scores[tile][i], scale, -off));
                        sum += scores[tile][i];
                    }
                }
                sums[half] = sums[half] * shrink + sum;
#pragma unroll
                for (int tile = 0; tile < D / 8; tile++) {
                    mixed[tile][2 * half] *= shrink;
                    mixed[tile][2 * half + 1] *= shrink;
                }
            }
        }
#pragma unroll
        for (int k = 0; k < ROWS / 16; k++) {
            if (k * 16 < left) {
                float *low = scores[2 * k], *high = scores[2 * k + 1];
                uint32_t weights[4] = {packed(low[0], low[1]), packed(low[2], low[3]), packed(high[0], high[1]),
                                       packed(high[2], high[3])};
#pragma unroll
                for (int pair = 0; pair < D / 16; pair++) {
                    uint32_t found[4];
                    load_matrices_transposed(found, &values[now][k * 16 + lane % 16][pair * 16 + lane / 16 * 8]);
                    multiply(mixed[2 * pair], weights, found[0], found[1]);
                    multiply(mixed[2 * pair + 1], weights, found[2], found[3]);
                }
            }
        }
        await_copies<0>();
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = sums[half];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        int query = first + warp * 16 + lane / 4 + half * 8;
        if (query < queries) {
            bf16 *row = to + ((size_t)blockIdx.z * tokens + query) * width + blockIdx.y * D + lane % 4 * 2;
#pragma unroll
            for (int tile = 0; tile < D / 8; tile++) {
                *reinterpret_cast<uint32_t *>(row + tile * 8) = packed(mixed[tile][2 * half] / sum, mixed[tile][2 * half + 1] / sum);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
    attend_32(const bf16 *qkv, bf16 *to, int tokens, int heads, int queries, float scale) {
    attend<32>(qkv, to, tokens, heads, queries, scale);
}

extern "C" __global__ void __launch_bounds__(128)
    attend_64(const bf16 *qkv, bf16 *to, int tokens, int heads, int queries, float scale) {
    attend<64>(qkv, to, tokens, heads, queries, scale);
}

extern "C" __global__ void __launch_bounds__(128)
    attend_80(const bf16 *qkv, bf16 *to, int tokens, int heads, int queries, float scale) {
    attend<80>(qkv, to, tokens, heads, queries, scale);
}
