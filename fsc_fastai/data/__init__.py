"Episodes from images: the loaders, the domains and their readers"
