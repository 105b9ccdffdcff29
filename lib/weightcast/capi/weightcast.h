/* weightcast for programs that are not C++: a trainer publishes weights, engines receive them, all of them or none.
 *
 * An update group is one trainer (rank 0 of a communicator) and tp * dp engine ranks (ranks 1, 2, ...: the tensor-
 * parallel ranks of replica 0, then those of replica 1, ...). Each is a process of its own, in whatever language, and
 * makes one handle. (A trainer may be several ranks: see below.)
 *
 *   trainer, rank 0                                engine, every other rank
 *     wc_options options = WC_OPTIONS_INIT;          wc_options options = WC_OPTIONS_INIT;
 *     options.model = "path/of/config.json";         options.model = "path/of/config.json";
 *     wc_trainer_create(&options, &trainer);         wc_engine_create(&options, &engine);
 *     for (version = 1; ...; ++version) {            for (;;) {
 *       ... train ...                                  wc_receive(engine, WC_FOREVER, &update);
 *       wc_publish(trainer, version,                   if (update.closed) break;
 *                  tensors, count, &update);           wc_pin_served(engine, &pin); ... sample ... wc_unpin(pin);
 *     }                                              }
 *     wc_trainer_destroy(trainer);                   wc_engine_destroy(engine);
 *
 * Several trainer ranks. With `trainers` = R in everybody's options ranks 0 ... R-1 are the trainer, each with a part of
 * the weights, and the engine ranks follow. Who has what is settled when the handles are made, because memory and ways
 * are prepared then: by name (`source_layout`), or by the tensors themselves (`sources`), of which the trainer ranks tell
 * everybody the rectangles. Every trainer rank calls wc_trainer_create() and then, with its own pieces, each function
 * that publishes; one that has nothing gives an empty table. What any of them gives that does not fit is refused on all
 * trainer ranks, naming that one, and engines notice nothing. They wait for each other as long as `timeout_s` and reading
 * such a model from a disk would take; a trainer rank that does not come by then is lost.
 *
 * An update is a transaction: bytes move into memory that nobody reads, every shard is compared by digest with what the
 * trainer sent, all ranks vote, and only then does any of them hold the new version. Whatever fails, the old version
 * stays, on all ranks, and all of them return the same status.
 *
 * Status. Every function that can fail returns one of WC_OK ... WC_DEADLINE, throws nothing and ends no process.
 * wc_last_error() has the text. Most failures leave the group intact: publish again. After one that does not (a rank
 * died or answers no more), wc_trainer_lost() and wc_engine_lost() are 1 and every call on the handle returns that
 * status; such a job must end, and by MPI_Abort(), because MPI_Finalize() would wait for the lost rank.
 *
 * MPI. Call wc_init(), or initialise MPI with MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE; with SERIALIZED no other
 * thread may be in MPI during a call on a handle. Then also set MPI_ERRORS_RETURN on MPI_COMM_WORLD, as wc_init() and
 * mpi4py do: Open MPI reports there what fails on other communicators, and would end the process. The group communicates
 * over duplicates of what it is given. Every wait has a deadline (`timeout_s`), but for wc_receive()'s wait for the
 * trainer to begin. An engine that is busy longer than that is not lost: wc_publish() says WC_BUSY, and may be repeated.
 *
 * Threads. One thread at a time per handle, but for pins, which any thread may take and give back, also during
 * updates.
 *
 * Memory. Tensors are dense, in row-major order, unless `strides_bytes` or `row_pitch_bytes` says otherwise. On GPUs
 * all that writes the tensors that are given must be done before the call (cudaStreamSynchronize), and so must be all
 * that still reads wc_receive_into()'s; when a call returns, its own work on the GPU is done. Pointers in tables are
 * only used during the call.
 *
 * Structs begin with their size, so that later versions of this header can add fields at the end: use the _INIT
 * macros, or set `size` and zero the rest. Programs that were compiled with an earlier version of it go on working.
 */
#ifndef WEIGHTCAST_CAPI_WEIGHTCAST_H
#define WEIGHTCAST_CAPI_WEIGHTCAST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WC_API __attribute__((visibility("default")))

/* Status, the exit codes of the program weightcast. */
enum {
  WC_OK = 0,            /* done; an update: verified and committed on all ranks */
  WC_USAGE = 64,        /* an argument is wrong: null, unknown name, wrong size */
  WC_BAD_DATA = 65,     /* tensors or files do not fit the model */
  WC_NO_INPUT = 66,     /* a file is missing or unreadable */
  WC_UNAVAILABLE = 69,  /* memory, a GPU, MPI, NCCL or a peer failed */
  WC_INTERNAL = 70,     /* a defect of weightcast */
  WC_BUSY = 75,         /* try again: engines are busy, nothing served yet, another update is open, or none has begun */
  WC_MISMATCH = 76,     /* bytes arrived that were not sent, and nothing was committed; or see wc_scrub() */
  WC_CONFIG = 78,       /* ranks do not agree, or the request cannot work */
  WC_DEADLINE = 124     /* a wait ran out of time */
};

/* Where memory is. */
enum {
  WC_HOST = 0,
  WC_CUDA = 1 /* on the GPU with CUDA ordinal `device` */
};

/* For waits. */
#define WC_FOREVER (-1.0)

/* A tensor where its owner keeps it. */
typedef struct {
  size_t size;              /* sizeof(wc_tensor); the same in all elements of a table */
  const char *name;         /* Hugging Face name of a parameter, or name of an engine tensor ("...qkv_proj.weight") */
  const char *dtype;        /* as safetensors spells it: "BF16", "F16", "F32", ... */
  const uint64_t *shape;    /* extents, outermost first */
  size_t dimensions;        /* how many */
  void *data;               /* first element; wc_publish() and wc_put() only read it */
  uint64_t row_pitch_bytes; /* from one row to the next; 0: dense. Rows are what the first extent counts */
  int memory;               /* WC_HOST or WC_CUDA */
  int device;               /* CUDA ordinal; ignored for WC_HOST */
  const int64_t *strides_bytes; /* of each dimension, from one element to the next; NULL: see row_pitch_bytes */
  const uint64_t *offsets;      /* of a trainer rank's part of a parameter: the index of its first element there, and */
  const uint64_t *full_shape;   /* the parameter's extents, outermost first; both NULL: all of it */
} wc_tensor;
#define WC_TENSOR_INIT {sizeof(wc_tensor), NULL, NULL, NULL, 0, NULL, 0, WC_HOST, 0, NULL, NULL, NULL}
/* Strides are signed multiples of the element's size, in bytes. What is published may have any: 0 where one element
 * stands for many, negative ones, those of a transposed view or of a part of a fused tensor. What is received into may
 * have all with which no two elements of the table share memory. WC_USAGE for a row pitch that is smaller than a row,
 * for both a pitch and strides, for an extent that does not fit the address space, and for no data of a tensor that has
 * elements. */

/* How to form an update group. The ranks must agree in everything but comm_name, comm, device, destinations and sources;
 * the layout of the sources is the trainer ranks' to say, and to agree on. */
typedef struct {
  size_t size;            /* sizeof(wc_options) */
  const char *model;      /* a config.json, a folder that holds one, or a named shape ("llama-3.2-1b", "tiny", ...) */
  const char *comm_name;  /* the group's communicator by name: "world"; or NULL: `comm` */
  int comm;               /* the group's communicator as MPI_Comm_c2f() gives it, when comm_name is NULL */
  int memory;             /* where this rank keeps its weights: WC_HOST or WC_CUDA */
  int device;             /* CUDA ordinal; ignored for WC_HOST */
  uint64_t tp;            /* tensor-parallel ranks per engine; 0: all engine ranks / dp */
  uint64_t dp;            /* engine replicas; 0: 1 */
  int slots;              /* engines: 2 versions in memory, or 1 (then see wc_receive_into()); 0: 2 */
  const char *transport;  /* "auto" (also NULL), "direct", "nccl", "mpi" */
  const char *method;     /* "sharded" (also NULL), "broadcast" */
  double timeout_s;       /* of each stage of an update; 0: 60 */
  const wc_tensor *destinations; /* engines: judged as wc_receive_into() will, when the engine is made; or NULL */
  size_t destination_count;      /* how many */
  uint64_t trainers;             /* trainer ranks; 0: 1 */
  const char *source_layout;     /* trainers: see below; NULL: custom with `sources`, else whole for one, fsdp for more */
  const wc_tensor *sources;      /* trainers, custom: the tensors that this rank will publish; their data is not used */
  size_t source_count;           /* how many; with `sources` not NULL 0 says that this rank has nothing */
  double delta_limit;            /* send what changed where that is at most this share of the bytes, up to 1; 0: never */
  int expert_parallel;           /* 1: each engine rank owns some experts whole; 0: a part of each */
  const char *quantize;          /* "none" (also NULL), "fp8-block", "fp8-channel": see below */
} wc_options;
#define WC_OPTIONS_INIT {sizeof(wc_options), NULL, "world", 0, WC_HOST, 0, 0, 0, 0, NULL, NULL, 0, NULL, 0, 0, NULL, NULL, 0, 0, 0, NULL}
/* Source layouts. "whole": rank 0 has everything. "fsdp": as PyTorch's fully_shard leaves parameters, of n rows each rank
 * has ceil(n/R), the last ones fewer or none; also of norms. "tp": each has what an engine's rank of tp R has, unfused,
 * norms on all. "custom": any rectangles, several of one parameter on a rank, too; what several ranks have must be the
 * same rectangle there, with equal values, and any of them may send it. WC_BAD_DATA on all ranks, when handles are made,
 * listing what no rank has or several have in different ways. */

/* Engines in fp8. With `quantize` the matrices of linear layers (not embeddings, head, norms and routers) are F8_E4M3 on
 * engines, beside scales in F32 by which they are multiplied: "weight_scale_inv" for each 128 x 128 elements ("fp8-block"),
 * or "weight_scale" for each row ("fp8-channel"), as vLLM and SGLang load them. Trainers give the matrices in F32, BF16 or
 * F16, and they are rounded while they are brought together; or in F8_E4M3, and then the scales as well. What rounds a block
 * or row must have all of it, and its scales: WC_BAD_DATA on a trainer whose layout cuts it. In the layouts that are made
 * here whoever has rows has their scales; among `sources` a matrix in F32, BF16 or F16 stands for its scales, too. */

/* Deltas. With a `delta_limit` a version after the first one is sent as a delta: the 16-bit units that changed since what
 * engines hold, found while the tensors are brought together. What engines hold afterwards is the same, bit for bit, and
 * is proven the same way. A version is sent whole, as if there were no limit, when more changed, when an engine does not
 * hold the version before, or when it goes parameter by parameter (wc_update_parameter()). Memory is taken for it when the
 * handles are made: on trainers and engines for about that share of the weights (on engines with two slots twice), on
 * trainers for a bit per unit, too. A step of reinforcement learning changes a few percent; 0.4 is a good limit. */

/* What was sent for a version. */
enum { WC_DENSE = 0, WC_DELTA = 1 };

/* How an update went. Seconds are those of the calling rank. */
typedef struct {
  size_t size;           /* sizeof(wc_update) */
  uint64_t version;      /* what is held now; 0 when closed */
  int closed;            /* engines: 1 when there was no update because the trainer has left, and there will be none */
  char digest[33];       /* of the whole model, 32 hexadecimal digits: the same on trainer and engines, for any tp */
  double local_s;        /* trainer: bringing the tensors together; engine: copying into the caller's tensors */
  double prepare_s, stage_s, verify_s, vote_s, commit_s; /* the transaction */
  uint64_t egress_bytes; /* trainer: that left this rank */
  int payload;           /* WC_DENSE, or WC_DELTA; the same on all ranks */
  uint64_t shipped_bytes, changed_elements; /* trainer: of the delta that left this rank, and units of 16 bits in it */
  double diff_s;         /* trainer: making the delta, beside what local_s has of it */
  double apply_s;        /* engine: writing it to its memory, a part of verify_s */
} wc_update;
#define WC_UPDATE_INIT {sizeof(wc_update), 0, 0, {0}, 0, 0, 0, 0, 0, 0, 0, WC_DENSE, 0, 0, 0, 0}

typedef struct wc_trainer wc_trainer; /* rank 0 of a group, or ranks 0 ... trainers - 1 */
typedef struct wc_engine wc_engine;   /* any other rank */
typedef struct wc_pin wc_pin;         /* a hold on one version in an engine's memory */

/* "0.1.0". Never fails. */
WC_API const char *wc_version(void);
/* The MPI library in use, in its own words. Never fails. */
WC_API const char *wc_mpi_library(void);
/* What it has for GPUs: "CUDA 13.0, NCCL 2.28.9", or "CUDA not built in, NCCL not built in". Never fails. */
WC_API const char *wc_gpu_libraries(void);
/* Why this thread's last failed call failed: what, on which rank and in which stage if that is known, and what to do
 * about it. Empty before any failure. Valid until this thread's next call. */
WC_API const char *wc_last_error(void);

/* Initialises MPI with MPI_THREAD_MULTIPLE, unless somebody has done so. WC_CONFIG when MPI was initialised with less
 * than MPI_THREAD_SERIALIZED, or is finalized. */
WC_API int wc_init(void);
/* Finalizes MPI if wc_init() initialised it. Collective over all processes, after all handles are destroyed. */
WC_API int wc_finalize(void);

/* ---- trainer ---------------------------------------------------------------------------------------------------- */

/* Forms the group as one of its trainer ranks: reads the model's shape, allocates memory for what this rank has of one
 * version (on options' memory and device), chooses a transport and warms it up. `trainer` is untouched on failure.
 * Collective: the other ranks call wc_engine_create(). Fails on all ranks or on none, unless the arguments themselves
 * cannot be used (WC_USAGE, or WC_CONFIG without MPI). WC_CONFIG naming the first difference when the ranks do not
 * agree. */
WC_API int wc_trainer_create(const wc_options *options, wc_trainer **trainer);

/* Publishes all parameters as one version, higher than the last: copies `tensors` together, then sends. Each parameter
 * is given once, under its Hugging Face name, in full (of several trainer ranks: each piece that the source layout says of
 * this one, with offsets and full_shape unless it is a whole parameter), in the model's dtype, or in one that is rounded to nearest even:
 * F32 and F16 for BF16, F32 and BF16 for F16. A tied lm_head.weight may be left out, or must hold what the embedding
 * does. Tensors without elements are passed over. `update` may be NULL. Collective; engines call wc_receive() or wc_receive_into(). WC_BAD_DATA listing all
 * tensors that do not fit, or WC_BUSY naming the engines that were not between requests within `timeout_s`: then nothing
 * has changed and engines notice nothing. Other failures are those of any rank, and the same on all. */
WC_API int wc_publish(wc_trainer *trainer, uint64_t version, const wc_tensor *tensors, size_t count,
                      wc_update *update);

/* Sends one parameter of a version, the seed's way: the version is served when each parameter has been sent once, in any
 * order, and all ranks agree. `empty_cache`: then also give back memory that is only kept for speed. `update->version` is
 * what engines serve after this call. Of several trainer ranks each gives its piece, or one without elements when it has
 * nothing; WC_CONFIG where it has several. A matrix that is rounded to fp8 is sent in F8_E4M3; its scales, which it has
 * made, follow under their own name, in a tensor whose `data` is NULL: WC_BAD_DATA when it was not given since they were
 * sent last. Collective; engines call wc_update_parameter_from_distributed(). Whatever fails, the
 * old version stays, and a version of which parameters were sent is begun anew; but WC_BUSY, as above, changes nothing. */
WC_API int wc_update_parameter(wc_trainer *trainer, uint64_t version, const wc_tensor *tensor, int empty_cache,
                               wc_update *update);

/* The same one by one, for trainers that never hold all parameters at once: begin, put each once in any order, commit.
 * wc_put() copies: the tensor's memory is free again when it returns. Of two names that are tied the second must bring
 * what the first did. Engines notice nothing before wc_commit(), which is the collective call. After a failed
 * wc_commit() what was put stays: commit again, or wc_abort().
 * WC_BUSY for a wc_begin() or wc_publish() while another version is open, WC_CONFIG for the others when none is,
 * WC_BAD_DATA when parameters are missing (listing them) or a tensor does not fit. */
WC_API int wc_begin(wc_trainer *trainer, uint64_t version);
WC_API int wc_put(wc_trainer *trainer, const wc_tensor *tensor);
WC_API int wc_commit(wc_trainer *trainer, wc_update *update);
/* Forgets what was begun. Local. Not an error when nothing was. */
WC_API int wc_abort(wc_trainer *trainer);

/* 1 when a rank of the group is lost, 0 otherwise and for NULL. */
WC_API int wc_trainer_lost(const wc_trainer *trainer);
/* Tells engines that the trainer leaves (their next wc_receive() says so) and frees everything. It waits a few seconds
 * for engines to let go of its memory. NULL is fine. */
WC_API void wc_trainer_destroy(wc_trainer *trainer);

/* ---- engine: all tp * dp ranks call these, each for itself ------------------------------------------------------- */

/* Forms the group as one of its engine ranks, holding nothing yet. See wc_trainer_create(). Destinations that do not
 * fit are refused here, on all ranks, as wc_receive_into() would. */
WC_API int wc_engine_create(const wc_options *options, wc_engine **engine);

/* Receives what the trainer publishes next into this rank's own memory, and serves it. Waits up to `wait_s` seconds for
 * the trainer to begin (WC_FOREVER: as long as it takes); WC_BUSY when it has not. `update` may not be NULL: it says
 * when the trainer has left. Collective once the trainer has begun. With two slots the old version is served until the
 * commit, and after any failure. With one slot nothing is served from the trainer's beginning on, nor after a failure,
 * until an update succeeds. A version that is still pinned in memory that is needed is waited for: WC_DEADLINE. */
WC_API int wc_receive(wc_engine *engine, double wait_s, wc_update *update);

/* The same into tensors of the caller: they hold the old version until all ranks have verified and voted, and are then
 * overwritten by a local copy; whatever fails before, they are untouched. One slot is enough.
 * Each tensor is this rank's shard of a parameter under its Hugging Face name, or a whole (fused, sharded, padded)
 * engine tensor as wc_engine_tensor() lists them; together they hold every parameter exactly once. A tied lm_head.weight
 * may be left out, be the embedding's memory, or have memory of its own: then both are written. They are where the
 * engine's slots are: on the host, or on its GPU.
 * A table that does not fit is refused on all ranks before a byte moves: WC_CONFIG, listing every missing, unknown,
 * repeated, overlapping, mis-shaped and mistyped tensor (at most 20, then a count).
 * Returns when the ranks of this replica have all copied. */
WC_API int wc_receive_into(wc_engine *engine, double wait_s, const wc_tensor *tensors, size_t count,
                           wc_update *update);

/* Receives one parameter, which the trainer sends by wc_update_parameter(), into this rank's own memory. `name`, `dtype`
 * and `shape` (extents, outermost first) are what the caller expects, in full: a difference is refused on all ranks before
 * anything moves (WC_CONFIG). The new version is served when its last parameter has arrived; `update->version` is what is
 * served after this call. `empty_cache`: also give back memory that is only kept for speed. WC_BUSY when the trainer has
 * not begun within `timeout_s`. Collective once it has. */
WC_API int wc_update_parameter_from_distributed(wc_engine *engine, const char *name, const char *dtype,
                                                const uint64_t *shape, size_t dimensions, int empty_cache,
                                                wc_update *update);

/* The first `truncate_size` rows of a parameter under its Hugging Face name, gathered from the served slots of this
 * replica and unfused, row by row as float: at most `capacity` of them to `values` (may be NULL when that is 0), how many
 * there are to `count`, and the version that they are of to `version` (may be NULL). The same on all ranks of the replica.
 * Collective over it. WC_USAGE for an unknown name, WC_BUSY when nothing is served. */
WC_API int wc_get_weights_by_parameter_name(wc_engine *engine, const char *name, uint64_t truncate_size, float *values,
                                            size_t capacity, size_t *count, uint64_t *version);

/* The version that the engine has: the served one, or after wc_receive_into() what the caller's tensors hold. 0: none. */
WC_API int wc_engine_version(wc_engine *engine, uint64_t *version);

/* Holds the served version: it is not overwritten before wc_unpin(). WC_BUSY when nothing is served. Any thread. */
WC_API int wc_pin_served(wc_engine *engine, wc_pin **pin);
/* Which version that is. */
WC_API int wc_pin_version(const wc_pin *pin, uint64_t *version);
/* Gives it back; pointers into it must not be used any more. NULL is fine. */
WC_API void wc_unpin(wc_pin *pin);

/* Engine tensors of this rank: how many, and number `index` of them: name, dtype, shape (padding included), memory and
 * device. `data` is where the pinned version has it; NULL when `pin` is NULL. Name and shape live as long as the engine.
 * Set tensor->size first. Every tensor is dense and begins at a multiple of 256 bytes. */
WC_API int wc_engine_tensor_count(const wc_engine *engine, size_t *count);
WC_API int wc_engine_tensor(const wc_engine *engine, const wc_pin *pin, size_t index, wc_tensor *tensor);

/* Digest of the whole model from what the served slots of all ranks of this replica hold now: 32 hexadecimal digits and
 * a 0; for an undamaged version that of its update. Collective over the replica. WC_BUSY when nothing is served. */
WC_API int wc_engine_digest(wc_engine *engine, char digest[33]);
/* Compares that with what was verified when the served version was committed, parameter by parameter, without the
 * trainer; padding is not looked at. WC_MISMATCH when memory has changed since, naming a parameter, the version and the
 * rank, the same on all ranks of this replica: publish a whole version. After wc_receive_into() it is the engine's memory
 * that is looked at, not the caller's tensors. Collective over the replica. WC_BUSY when nothing is served. */
WC_API int wc_scrub(wc_engine *engine);

/* 1 when a rank of the group is lost, 0 otherwise and for NULL. */
WC_API int wc_engine_lost(const wc_engine *engine);
/* Leaves the group and frees everything. It waits a few seconds for the other ranks to leave, too, and refuses what the
 * trainer publishes meanwhile (WC_UNAVAILABLE on all ranks). WC_BUSY, and nothing is done, while there are pins. NULL is
 * fine. */
WC_API int wc_engine_destroy(wc_engine *engine);

#ifdef __cplusplus
}
#endif

#endif
