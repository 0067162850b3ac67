"""The recipe that trains the bundled models. Loading them imports nothing from here.

It runs in stages on two CPU cores; each one resumes if it was interrupted. Read the modules in this order:

    stage           the training loop of every stage
    tokenizer       a CLIP tokenizer for the captions' words
    autoencoder     stage 1: images of 64 by 64 pixels to latents of 8 by 8, and back
    denoiser        stage 2: the U-Net and its text encoder, on cached latents
    clip            stage 3: a small CLIP, whose image features measure distances between sets of images
    scene_groups    training data of the rewards: scenes, their near misses, and corrupted images
    reward          stage 4: the rewards "shapes" and "shapes-referee", contrastively
    relations       captions of relations and colours, for the matcher
    matching        stage 5: the reward "shapes-matching", a matcher of images and captions
    pipeline        settings of all stages, and the calls that run them: `train_shapes` and `train_rewards`

The numbers are fixed: the order of the random draws is part of the recipe.
"""
