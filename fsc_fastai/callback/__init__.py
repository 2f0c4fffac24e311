"fastai callbacks: one idea per file"
