"""Everything a user may change, as plain values.

Edit a line here, or override it for one run: ``python train.py --set EPOCHS=5 --set OUTPUT_DIR=/tmp/try``.
Relative paths are taken from the folder the command is started in. README.md explains the data sources.
"""

# --- Model -----------------------------------------------------------------------------------------------------------
MODEL_ARCHITECTURE = "cnn32"  # what train.py trains without --train: the name of a file in models/
NB_CLASSES = 10  # 10 = whole digits 0..9; 100 = tenths 0.0..9.9 (how far the wheel has rolled)
INPUT_WIDTH = 20  # width of the network's input, pixels
INPUT_HEIGHT = 32  # height of the network's input, pixels
INPUT_CHANNELS = 1  # 1 = grey, 3 = RGB

# --- Data ------------------------------------------------------------------------------------------------------------
# A list of sources. Types: "synthetic" (drawn by the project), "filename" (3.4_x.jpg anywhere below "path"),
# "label_file" ("labels" names a text file below "path"), "folder_structure" (one folder a class). "weight" below 1 uses
# that share of the training pictures, in each epoch others, above 1 repeats them, 0 leaves the source out. Example:
#   {"name": "kitchen", "type": "filename", "path": "datasets/kitchen", "weight": 1.0},
# A path has / on Windows, too ("C:/pictures/kitchen"): behind a \ Python takes many letters for others.
DATA_SOURCES = [
    {"name": "synthetic", "type": "synthetic", "count": 60_000, "weight": 0.33},
]
TEST_SOURCES = []  # sources of the same form that are only ever measured on, best: meters that DATA_SOURCES lack
VALIDATION_SHARE = 0.1  # share of DATA_SOURCES that chooses the best epoch, 0.01..0.5
TEST_SHARE = 0.1  # share of DATA_SOURCES that is only measured on, 0..0.5 (0 needs TEST_SOURCES)
SPLIT_BY = "cluster"  # "cluster" = near twins stay together, "meter" = whole meters, "image" = at random (flatters)
BALANCE_SOURCES = True  # within a source, meters count by the square root of their number of pictures
SEED = 42  # start of every random sequence: same seed, same machine, same figures

# --- Training --------------------------------------------------------------------------------------------------------
BATCH_SIZE = 128  # pictures a training step
EPOCHS = 30  # upper bound in passes over the training pictures; early stopping may end sooner
LEARNING_RATE = 0.005  # highest step size of the optimizer; a network without batch normalisation may need 0.001
# "adam" and "adamw" are the same (WEIGHT_DECAY apart from the gradient), "sgd" has Nesterov's momentum and needs a
# LEARNING_RATE of 0.05 to 0.2.
OPTIMIZER = "adamw"  # "adam", "adamw", "nadam", "rmsprop" or "sgd"
WEIGHT_DECAY = 0.0001  # pull of the weights towards zero a step, relative to the learning rate; 0 = none
LOSS = "categorical_crossentropy"  # or "categorical_focal_crossentropy" (hard pictures count more)
LABEL_SPREAD = 1.0  # tenths that a label may be off: its target is shared with the classes so near; 0 = hard labels
RING_SMOOTHING = 0.25  # share of each neighbour in a tenth's output once training is over, 0..0.33; 0 = none
LABEL_SMOOTHING = 0.0  # share of the target spread over all classes, 0..0.5
TEACHERS = []  # trained models (run folders or .keras files) whose mean answer is learnt, too; same as --teacher
TEACHER_SHARE = 0.9  # how much the teachers' answer counts against the label, 0..1
START_FROM = ""  # trained model (run folder or .keras file) whose weights training begins with; "" = fresh ones
DROPOUT = 0.0  # share of the features before the last layer that each training step leaves out, 0..0.9
LEARNING_RATE_SCHEDULE = "cosine"  # "cosine" (down to 1 % over EPOCHS), "plateau" (divided when stuck), "constant"
WARMUP_EPOCHS = 1  # epochs over which "cosine" rises to LEARNING_RATE first
PLATEAU_PATIENCE = 5  # epochs without a better val_loss before "plateau" divides the learning rate
PLATEAU_FACTOR = 0.5  # what "plateau" multiplies the learning rate with, 0.01..0.99
EARLY_STOPPING_PATIENCE = 15  # epochs without a better MONITOR before training ends; 0 = never
MONITOR = "val_loss"  # what makes an epoch the best: "val_loss" (lowest) or "val_accuracy" (highest)
CHECKPOINT_EPOCHS = 1  # epochs between two checkpoints for --resume; 0 = none, and no --resume

# --- Augmentation: random changes of each training picture, drawn evenly from -value..+value unless said otherwise ----
AUGMENT = True  # False = train on the pictures as they are
AUGMENT_ROTATION = 4.0  # degrees
AUGMENT_ZOOM = 0.12  # share of the size
AUGMENT_SHEAR = 0.08  # slant of upright strokes, pixels a pixel
AUGMENT_SHIFT_X = 0.1  # share of the width
AUGMENT_SHIFT_Y = 0.02  # share of the height; from one tenth to the next it is some 0.09
AUGMENT_BRIGHTNESS = 0.25  # share of 255
AUGMENT_CONTRAST = 0.5  # change of the distance to the picture's mean
AUGMENT_COLOR = 0.2  # gain of each colour channel by itself; RGB only
AUGMENT_GREY = 0.15  # probability that the colour is taken away; RGB only
AUGMENT_SWAP = 0.2  # probability that the colour channels are shuffled, which leaves a sixth as they are; RGB only
AUGMENT_LIGHT = 0.3  # fall of the light from the middle to a side
AUGMENT_GLARE = 0.8  # strongest reflection, share of 255, on a fifth of the pictures
AUGMENT_BLUR = 1.0  # strongest blur, on three in ten pictures; 1 = the mean of 3x3 pixels
AUGMENT_SHARPEN = 0.7  # strongest sharpening, on three in ten other pictures, as a camera's own does
AUGMENT_COVER = 0.1  # probability that a rectangle covers a part
AUGMENT_NOISE = 0.04  # highest standard deviation of the noise, share of 255, drawn evenly from 0..value
AUGMENT_INVERT = 0.3  # probability that dark and light are exchanged

# --- Retraining on failed readings ----------------------------------------------------------------------------------
RETRAIN_MAX_DROP = 0.2  # points (hundredths) an old test set may lose, above 0 one picture at any rate; else REJECTED

# --- Hyper-parameter search (tuner.py) --------------------------------------------------------------------------------
TUNER_OPTIMIZERS = ["adamw", "nadam", "rmsprop"]  # values of OPTIMIZER to try; the rates below are too low for "sgd"
TUNER_LEARNING_RATES = [0.001, 0.003, 0.005, 0.01]  # values of LEARNING_RATE to try
TUNER_BATCH_SIZES = [32, 64, 128, 256]  # values of BATCH_SIZE to try
TUNER_AXES = {}  # further parameters to try, such as {"LABEL_SMOOTHING": [0.0, 0.1], "AUGMENT_CONTRAST": [0.3, 0.5]}
TUNER_MAX_TRIALS = 20  # combinations tried, spread evenly over all of them
TUNER_EPOCHS = 10  # upper bound in epochs of a trial
TUNER_PATIENCE = 4  # epochs without a better val_accuracy before a trial ends; 0 = never
TUNER_STRATEGY = "grid"  # "grid" (every trial to its end) or "halving" (the better third goes on, again and again)
TUNER_OBJECTIVE = "val_accuracy"  # or "int8_within_0.1": the quantised model on the same pictures; 100 classes only
TUNER_MAX_KB = 0  # leave out models whose device file is larger, KiB; 0 = no limit
TUNER_MAX_MACS = 0  # leave out models with more multiply-accumulates a picture; 0 = no limit

# --- Export ----------------------------------------------------------------------------------------------------------
OUTPUT_DIR = "exported_models"  # folder that receives one folder a run
QUANTIZE_MODEL = True  # write a full-integer TFLite file next to the float one
USE_QAT = False  # train on with fake quantisation for QAT_EPOCHS before the quantised file is written
ESP_DL_QUANTIZE = False  # write an .espdl file for each of ESP_DL_TARGETS; needs requirements-espdl.txt
ESP_DL_TARGETS = ["esp32s3"]  # chips: "esp32" (for S2, C3, C5 and C6 too), "esp32s3", "esp32p4"
ESP_DL_MODE = "ptq"  # "ptq", "tqt" (trained thresholds), "mixed" (worst two layers in 16 bits), "auto" (best)
ESP_DL_MIN_AGREEMENT = 0.97  # share of pictures an .espdl file must read like Keras (up to a tenth apart) to be written
QAT_EPOCHS = 5  # epochs of quantisation-aware training, after the EPOCHS of float training
QAT_LEARNING_RATE = 0.006  # highest step size of quantisation-aware training, as a share of LEARNING_RATE
QUANTIZED_IO_TYPE = "int8"  # input and output of the quantised file: "int8" (pixel - 128), "uint8" (pixel), "float32"
CALIBRATION_IMAGES = 2000  # training pictures that set the ranges of the quantised file, 100..10,000
DEPLOY_TARGETS = ["tflite_micro"]  # devices to write for: "tflite_micro", "ai_on_the_edge", "esphome"
MODEL_VERSION = "0100"  # goes into the names of files whose device wants a version

# --- Machine ---------------------------------------------------------------------------------------------------------
GPU_MEMORY_GROWTH = True  # take GPU memory as needed instead of all at once
GPUS = 1  # graphics cards of this machine that share each training batch, 1..16
