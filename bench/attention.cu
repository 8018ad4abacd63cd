// Times attention of one layer in bfloat16 on a GPU: our towers' kernel and that of candle-flash-attn, which take turns with the
// same queries, keys and values.
//
//     attention IMAGES TOKENS HEADS ROUNDS
//
// Prints one JSON object: microseconds, medians over the rounds, and how far apart the results are at most. Built and run by
// attention.py. Heads are of 64 values, as in all of CLIP's towers for images.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cutlass/numeric_types.h>

#include "flash.h"
#include "kernels.cu"

constexpr int HEAD = 64, QUERIES = 64, THREADS = 128, WARM_UP = 20, LAUNCHES = 200;

template <> void run_mha_fwd_<cutlass::bfloat16_t, HEAD, false>(Flash_fwd_params &params, cudaStream_t stream);

static void check(cudaError_t error) {
    if (error != cudaSuccess) {
        fprintf(stderr, "%s\n", cudaGetErrorString(error));
        exit(1);
    }
}

struct Shape {
    int images, tokens, heads;

    int width() const { return heads * HEAD; }
    size_t rows() const { return (size_t)images * tokens; }
};

// Queries, keys and values side by side, and what both make of them.
struct Memory {
    bf16 *mixing, *ours, *candle;
    float *sums;

    explicit Memory(Shape shape) {
        size_t values = shape.rows() * shape.width();
        check(cudaMalloc(&mixing, 3 * values * sizeof(bf16)));
        check(cudaMalloc(&ours, values * sizeof(bf16)));
        check(cudaMalloc(&candle, values * sizeof(bf16)));
        check(cudaMalloc(&sums, shape.rows() * shape.heads * sizeof(float)));
        std::vector<bf16> noise(3 * values);
        uint32_t state = 1;
        for (bf16 &value : noise) {
            state = state * 1664525u + 1013904223u;
            value = __float2bfloat16((float)(state >> 8) / (1 << 23) - 1.0f);
        }
        check(cudaMemcpy(mixing, noise.data(), noise.size() * sizeof(bf16), cudaMemcpyHostToDevice));
    }
};

static void attend_ours(Shape shape, const Memory &memory) {
    dim3 grid((shape.tokens + QUERIES - 1) / QUERIES, shape.heads, shape.images);
    attend_64<<<grid, THREADS>>>(memory.mixing, memory.ours, shape.tokens, shape.heads, shape.tokens,
                                 (float)M_LOG2E / std::sqrt((float)HEAD));
}

static void attend_candle(Shape shape, const Memory &memory) {
    Flash_fwd_params params = {};
    int width = shape.width();
    params.q_ptr = memory.mixing;
    params.k_ptr = memory.mixing + width;
    params.v_ptr = memory.mixing + 2 * width;
    params.o_ptr = memory.candle;
    params.softmax_lse_ptr = memory.sums;
    params.q_row_stride = params.k_row_stride = params.v_row_stride = 3 * width;
    params.q_batch_stride = params.k_batch_stride = params.v_batch_stride = (int64_t)shape.tokens * 3 * width;
    params.q_head_stride = params.k_head_stride = params.v_head_stride = params.o_head_stride = HEAD;
    params.o_row_stride = width;
    params.o_batch_stride = (int64_t)shape.tokens * width;
    params.b = shape.images;
    params.h = params.h_k = shape.heads;
    params.h_h_k_ratio = 1;
    params.d = params.d_rounded = HEAD;
    params.seqlen_q = params.seqlen_k = shape.tokens;
    params.seqlen_q_rounded = params.seqlen_k_rounded = (shape.tokens + 127) / 128 * 128;
    params.total_q = shape.rows();
    params.scale_softmax = 1.0f / std::sqrt((float)HEAD);
    params.scale_softmax_log2 = params.scale_softmax * (float)M_LOG2E;
    // Nothing is dropped.
    params.p_dropout = params.rp_dropout = 1.0f;
    params.p_dropout_in_uint8_t = 255;
    params.scale_softmax_rp_dropout = params.scale_softmax;
    params.window_size_left = params.window_size_right = -1;
    params.is_bf16 = params.is_seqlens_k_cumulative = true;
    params.num_splits = 1;
    run_mha_fwd_<cutlass::bfloat16_t, HEAD, false>(params, nullptr);
}

// Of one launch, from many.
template <typename Attend> static float microseconds(Attend attend) {
    cudaEvent_t begun, ended;
    check(cudaEventCreate(&begun));
    check(cudaEventCreate(&ended));
    for (int i = 0; i < WARM_UP; i++) attend();
    check(cudaEventRecord(begun));
    for (int i = 0; i < LAUNCHES; i++) attend();
    check(cudaEventRecord(ended));
    check(cudaEventSynchronize(ended));
    check(cudaGetLastError());
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, begun, ended));
    check(cudaEventDestroy(begun));
    check(cudaEventDestroy(ended));
    return milliseconds * 1000 / LAUNCHES;
}

static float median(std::vector<float> of) {
    std::sort(of.begin(), of.end());
    return of[of.size() / 2];
}

static float furthest(const Memory &memory, size_t values) {
    std::vector<bf16> ours(values), candle(values);
    check(cudaMemcpy(ours.data(), memory.ours, values * sizeof(bf16), cudaMemcpyDeviceToHost));
    check(cudaMemcpy(candle.data(), memory.candle, values * sizeof(bf16), cudaMemcpyDeviceToHost));
    float apart = 0;
    for (size_t i = 0; i < values; i++) {
        float difference = std::fabs(__bfloat162float(ours[i]) - __bfloat162float(candle[i]));
        if (std::isnan(difference)) return INFINITY;
        apart = std::max(apart, difference);
    }
    return apart;
}

int main(int count, char **arguments) {
    if (count != 5) {
        fprintf(stderr, "attention IMAGES TOKENS HEADS ROUNDS\n");
        return 2;
    }
    Shape shape = {atoi(arguments[1]), atoi(arguments[2]), atoi(arguments[3])};
    int rounds = atoi(arguments[4]);
    if (shape.images < 1 || shape.tokens < 1 || shape.heads < 1 || rounds < 1) {
        fprintf(stderr, "at least one of each\n");
        return 2;
    }
    Memory memory(shape);
    std::vector<float> ours, candle;
    for (int round = 0; round < rounds; round++) {
        ours.push_back(microseconds([&] { attend_ours(shape, memory); }));
        candle.push_back(microseconds([&] { attend_candle(shape, memory); }));
    }
    float apart = furthest(memory, shape.rows() * shape.width());
    printf("{\"ours\": %.2f, \"candle\": %.2f, \"apart\": %.5f}\n", median(ours), median(candle), apart);
    return 0;
}
