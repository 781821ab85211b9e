"""The CUDA source of dedup: from normalised text to MinHash minima in one kernel, bit for bit those of the CPU.

How: one warp (32 threads) per document, documents of any length end to end, in strides of the number of warps. A warp
walks over its document 32 bytes at a time. Each thread asks whether a token begins at its byte, and if so finds its end
and hashes it; a ballot gives every token its place in a row that the warp keeps in shared memory. As soon as `ngram`
tokens are there, each thread makes one shingle of neighbours, and then all threads walk over these (at most 32) shingle
values, each with PER_THREAD running minima in registers. The last ngram - 1 tokens wait for the next 32 bytes. So
neither the shingles of a document nor a matrix of permutations x shingles ever exists.
The same 64-bit and 32-bit unsigned arithmetic as in shingles.py and minhash.py, which wraps alike.
Expects: normal forms (normalise.py), so valid UTF-8; a token begins where the code point is a letter of a script
without spaces, or a word letter that follows no word letter, marks aside, which needs no state from other bytes.
State: no GPU was at hand. The source passes the CUDA compiler, was run as C++ with the 32 threads of a warp as
coroutines, and was stepped in numpy (tests/dedup/test_gpu_kernel.py). On a GPU it has neither been run nor timed.
Traps: one very long token is hashed by one thread while 31 wait; `__syncwarp` stands wherever one thread reads from
shared memory what another has written, in both directions.
"""

WARP = 32
THREADS_PER_BLOCK = 256
MAX_BLOCKS = 4096
SIGNATURES = "minhash_signatures"
SHINGLE_SIGNATURES = "shingle_signatures"

SOURCE = r"""
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEPARATOR 0
#define WORD 1
#define SINGLE 2
#define MARK 3
#define ALL_LANES 0xFFFFFFFFu

__device__ u64 mix(u64 value)
{
    value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCDull;
    value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53ull;
    return value ^ (value >> 33);
}

__device__ u64 load_bytes(const unsigned char* text, long long at, int count)
{
    u64 word = 0;
    for (int k = 0; k < count; k++) word |= (u64)text[at + k] << (8 * k);
    return word;
}

__device__ u64 hash_token(const unsigned char* text, long long begin, long long end)
{
    long long size = end - begin;
    u64 state = 0x9AE16A3B2F90404Full ^ (u64)size * 0xC2B2AE3D27D4EB4Full;
    while (size > 8) {
        state = (state ^ load_bytes(text, begin, 8)) * 0x9E3779B97F4A7C15ull;
        state ^= state >> 33;
        begin += 8;
        size -= 8;
    }
    return mix((state ^ load_bytes(text, begin, (int)size)) * 0x9E3779B97F4A7C15ull);
}

__device__ bool continues(unsigned char byte)
{
    return (byte & 0xC0) == 0x80;
}

__device__ int length_at(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

__device__ int kind_at(const unsigned char* text, long long at, const unsigned short* page, const unsigned char* kinds)
{
    const u32 lead = text[at];
    if (lead < 0x80) {
        const bool letter = (lead >= 'a' && lead <= 'z') || (lead >= '0' && lead <= '9') || lead == '_';
        return letter ? WORD : SEPARATOR;
    }
    const int length = length_at(text[at]);
    u32 code_point = lead & (0x7Fu >> length);
    for (int k = 1; k < length; k++) code_point = code_point << 6 | (text[at + k] & 0x3Fu);
    return kinds[(u32)page[code_point >> 8] << 8 | (code_point & 0xFFu)];
}

// The kind of the token that begins at this byte, SEPARATOR where none begins.
__device__ int token_kind(const unsigned char* text, long long begin, long long at,
    const unsigned short* page, const unsigned char* kinds)
{
    if (continues(text[at])) return SEPARATOR;
    const int kind = kind_at(text, at, page, kinds);
    if (kind == SINGLE) return SINGLE;
    if (kind != WORD) return SEPARATOR;
    while (at > begin) {
        at--;
        while (continues(text[at])) at--;
        const int before = kind_at(text, at, page, kinds);
        if (before == WORD) return SEPARATOR;
        if (before != MARK) break;
    }
    return WORD;
}

__device__ long long token_end(const unsigned char* text, long long at, long long end, int kind,
    const unsigned short* page, const unsigned char* kinds)
{
    at += length_at(text[at]);
    while (at < end) {
        const int next = kind_at(text, at, page, kinds);
        if (next == SEPARATOR || next == SINGLE || (next == WORD && kind == SINGLE)) break;
        at += length_at(text[at]);
    }
    return at;
}

extern "C" __global__ void shingle_signatures(
    const unsigned char* text, const long long* starts, long long documents, int by_character,
    const unsigned short* page, const unsigned char* kinds, const u64* multipliers, int ngram,
    const u32* a, const u32* b, int permutations, u32* out, long long* shingles)
{
    extern __shared__ u64 shared[];
    const int lane = threadIdx.x % 32;
    const int room = 32 + ngram - 1;
    u64* tokens = shared + (threadIdx.x / 32) * (room + 16);
    u32* values = (u32*)(tokens + room);
    const long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const long long warps = (long long)gridDim.x * blockDim.x / 32;
    u32 multiplier[PER_THREAD], increment[PER_THREAD], smallest[PER_THREAD];
    for (int k = 0; k < PER_THREAD; k++) {
        const int p = k * 32 + lane;
        multiplier[k] = p < permutations ? a[p] : 0u;
        increment[k] = p < permutations ? b[p] : 0u;
    }
    for (long long document = warp; document < documents; document += warps) {
        const long long begin = starts[document], end = starts[document + 1];
        int held = 0;
        long long made = 0;
        for (int k = 0; k < PER_THREAD; k++) smallest[k] = 0xFFFFFFFFu;
        for (long long here = begin; here < end; here += 32) {
            const long long at = here + lane;
            bool begins = false;
            u64 hash = 0;
            if (at < end && by_character) {
                begins = !continues(text[at]);
                if (begins) hash = hash_token(text, at, at + length_at(text[at]));
            } else if (at < end) {
                const int kind = token_kind(text, begin, at, page, kinds);
                begins = kind != SEPARATOR;
                if (begins) hash = hash_token(text, at, token_end(text, at, end, kind, page, kinds));
            }
            const u32 found = __ballot_sync(ALL_LANES, begins);
            if (begins) tokens[held + __popc(found & ((1u << lane) - 1u))] = hash;
            held += __popc(found);
            __syncwarp();
            const int ready = held - ngram + 1;
            if (ready <= 0) continue;
            if (lane < ready) {
                u64 total = 0;
                for (int j = 0; j < ngram; j++) total += tokens[lane + j] * multipliers[j];
                values[lane] = (u32)(mix(total) >> 32);
            }
            __syncwarp();
            for (int s = 0; s < ready; s++) {
                const u32 value = values[s];
                for (int k = 0; k < PER_THREAD; k++) {
                    const u32 image = multiplier[k] * value + increment[k];
                    smallest[k] = image < smallest[k] ? image : smallest[k];
                }
            }
            for (int first = 0; first < ngram - 1; first += 32) {
                const int place = first + lane;
                const u64 token = place < ngram - 1 ? tokens[ready + place] : 0;
                __syncwarp();
                if (place < ngram - 1) tokens[place] = token;  // before what the next round reads: ready >= 1
            }
            held = ngram - 1;
            made += ready;
            __syncwarp();
        }
        for (int k = 0; k < PER_THREAD; k++) {
            const int p = k * 32 + lane;
            if (p < permutations) out[document * permutations + p] = smallest[k];
        }
        if (lane == 0) shingles[document] = made;
    }
}

// The minima of shingle values that were made elsewhere; the threads of a warp need not know of each other.
extern "C" __global__ void minhash_signatures(
    const u32* values, const long long* starts, long long documents,
    const u32* a, const u32* b, int permutations, u32* out)
{
    const long long warp = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const long long warps = (long long)gridDim.x * blockDim.x / 32;
    const int lane = threadIdx.x % 32;
    for (long long document = warp; document < documents; document += warps) {
        const long long begin = starts[document], end = starts[document + 1];
        u32 multiplier[PER_THREAD], increment[PER_THREAD], smallest[PER_THREAD];
        for (int k = 0; k < PER_THREAD; k++) {
            const int p = k * 32 + lane;
            multiplier[k] = p < permutations ? a[p] : 0u;
            increment[k] = p < permutations ? b[p] : 0u;
            smallest[k] = 0xFFFFFFFFu;
        }
        for (long long at = begin; at < end; at++) {
            const u32 value = values[at];
            for (int k = 0; k < PER_THREAD; k++) {
                const u32 image = multiplier[k] * value + increment[k];
                smallest[k] = image < smallest[k] ? image : smallest[k];
            }
        }
        for (int k = 0; k < PER_THREAD; k++) {
            const int p = k * 32 + lane;
            if (p < permutations) out[document * permutations + p] = smallest[k];
        }
    }
}
"""


def per_thread(permutations: int) -> int:
    """Return how many permutations a thread carries, the constant PER_THREAD of the source: 4 for the default 112."""
    return -(-permutations // WARP)


def grid_size(documents: int) -> int:
    """Return the number of blocks for so many documents: a warp each, until the grid is full."""
    warps_per_block = THREADS_PER_BLOCK // WARP
    return max(1, min(MAX_BLOCKS, -(-documents // warps_per_block)))


def shared_bytes(ngram: int) -> int:
    """Return the shared memory of a block of `shingle_signatures`: for each warp its row of tokens and 32 values."""
    return THREADS_PER_BLOCK // WARP * 8 * (WARP + ngram - 1 + WARP // 2)
