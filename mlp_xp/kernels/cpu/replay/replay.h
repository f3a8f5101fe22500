// Epochs of training as a program of operations on fixed buffers: what Python hands over, and how it is run.
//
// Python runs the text of forward and backward once, on kernels that write down each call. The library replays what
// they wrote, for any number of updates, without Python. It calls the products of the BLAS that NumPy has loaded.
// For predictions, the program is that of the text of forward.
//
// Layers and their parameters: layer l is the block [b; W^T] of (1 + n_{l-1}, n_l) numbers, as in params.py, but each of
// its rows begins on a boundary of 64 bytes. What fills the rows up is zero and stays zero.
#pragma once
#include <stdint.h>

enum { FEATURES, AFFINE, ACTIVATE, DROPOUT, LOSS, ACTIVATION_GRADIENT, INPUT_GRADIENT, WEIGHT_GRADIENT, BIAS_GRADIENT };
enum { IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU };
enum { SOFTMAX_CROSS_ENTROPY, SIGMOID_CROSS_ENTROPY, HALF_SQUARED_ERROR, PERCEPTRON_CRITERION,
       SOFTMAX_LOG_LOSS, SIGMOID_LOG_LOSS, HALF_MEAN_SQUARED_ERROR, POISSON_DEVIANCE, ABSOLUTE_ERROR, HUBER };
enum { DESCENT, MOMENTUM, ADAM, MOMENTUM_OF_STEPS, ADAM_EPSILON_HAT };

typedef struct {
  int32_t operation, function;  // which activation or loss
  int32_t layer;                // whose parameters, or whose units are dropped
  int32_t from, with, to;       // buffers
} Instruction;

typedef void Gemm(int order, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, double alpha, const void *a,
                  int64_t lda, const void *b, int64_t ldb, double beta, void *c, int64_t ldc);

// Ranks are processes that share each update. They have the same list of messages, with addresses of their own.
typedef struct {
  void *at;
  int64_t bytes;
  int64_t sender, receiver;  // ranks; a receiver of -1 stands for all others
} Message;
// Returns once all messages of this rank have come and gone; anything but 0 if they did not. Lists with the same key are
// the same: it is the number of rows of a mini-batch, or one of these.
typedef int64_t Exchange(int64_t key, const Message *messages, int64_t count);
enum { SUMS = -1, PARAMETERS = -2, STATE = -3 };

typedef struct {
  int64_t layers, buffers, instructions;
  const int64_t *sizes;   // units of layers 0 to L
  const int64_t *widths;  // columns of the buffers
  const Instruction *program;
  const void *gemm;  // cblas_?gemm
  int64_t long_integers;  // whether its integers have 64 bits

  const void *X;  // (rows, sizes[0]) of bytes, which count as x / 255, or of numbers; or the numbers that are not zero;
                  // or null, if rows come with each piece
  const int64_t *starts;   // (rows + 1) of the rows' numbers, if only these are given, or null
  const int32_t *columns;  // of each of them, in order
  const void *y;  // (rows) of int32, or (rows, sizes[L]) of numbers; or null, for predictions
  const void *weights;  // (rows): how much each counts, or null
  int64_t rows, bytes, labels;
  int64_t sparse;  // whether the first layer skips zeros one by one
  int64_t marked;  // whether the masks of all rows are made at the beginning and kept; else each row's as it is taken
  const void *background;  // (sizes[0]) or null: the usual value of each column, which counts as zero if it is sparse

  const uint32_t *thresholds;  // of layers 0 to L: units whose hash is below are dropped; null if none are
  const double *factors;       // likewise: what the other units are multiplied by

  void *theta, *gradient, *first, *second;  // parameters, mean gradient, and what the optimizer keeps
  int64_t optimizer, nesterov;
  double momentum, beta1, beta2, epsilon, decay;
  double l2, l2_sum;  // penalties l2/2 |W|^2 on the mean loss, and on the sum that it is made of

  int64_t batch;    // rows of an update
  int64_t shard;    // rows that a full batch is cut into, and at most those to predict
  int64_t groups;   // of shards, each with a sum of its own; 0 for mini-batches
  int64_t threads;

  int64_t rank, ranks;  // the number of this process, and how many there are
  Exchange *exchange;   // called by the thread that calls `run` or `gather`, if there are several

  int64_t words;   // of a row's mask, 64 numbers each, that are added up at a time: one, or more if they say little
} Setup;

typedef struct {
  const int32_t *order;  // of the rows, or null
  const void *X;         // rows in the order of the epoch, from its row `first` on; or null, if all of them are known
  int64_t first;
  const uint32_t *keys;  // of dropout in this epoch: two for each of layers 0 to L, or null
  int64_t update, last;  // of this epoch: those to do; of a full batch, rounds, in which each group adds up one shard
  int64_t done;          // updates of the optimizer before the first one here
  double rate, bias_rate;
  int64_t keep_gradient;  // of the last one
  double loss;            // sum over rows, with the penalty; what it is before, of the same epoch, counts
} Piece;

typedef struct Replay Replay;
