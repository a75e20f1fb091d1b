#!/bin/sh
# How the files here were made: ImageMagick 6.9 (Q16), exiftool, cwebp and avifenc, none of them ours.
# Each shows four quarters: red (200,40,40), green (40,180,60), blue (30,60,200), yellow (230,220,50); 96x64 pixels.
set -e
C=${CONVERT:-convert}
ICC=${ICC:-/usr/share/color/icc} # Debian's icc-profiles-free, zlib licence
$C -size 48x32 xc:'rgb(200,40,40)' xc:'rgb(40,180,60)' +append top.ppm
$C -size 48x32 xc:'rgb(30,60,200)' xc:'rgb(230,220,50)' +append bottom.ppm
$C top.ppm bottom.ppm -append base.ppm
S="-strip"
$C base.ppm $S -define png:color-type=2 plain.png
$C base.ppm $S -quality 95 -sampling-factor 1x1 plain.jpg
$C base.ppm $S -interlace JPEG -quality 95 progressive.jpg
$C base.ppm $S -type truecolor BMP3:plain.bmp
$C base.ppm $S plain.gif
$C base.ppm $S -compress LZW plain.tiff
$C base.ppm tmp.png
cwebp -quiet -lossless tmp.png -o plain.webp
cwebp -quiet -q 90 tmp.png -o lossy.webp
avifenc -s 10 --min 0 --max 5 -y 444 tmp.png plain.avif >/dev/null
$C -delay 10 base.ppm \( base.ppm -negate \) -loop 0 animated.gif
# upright again once the orientation is applied
$C base.ppm -rotate 180 -quality 95 exif3.jpg && exiftool -q -overwrite_original -n -Orientation=3 exif3.jpg
$C base.ppm -transpose -quality 95 exif5.jpg && exiftool -q -overwrite_original -n -Orientation=5 exif5.jpg
$C base.ppm -rotate 270 -quality 95 exif6.jpg && exiftool -q -overwrite_original -n -Orientation=6 exif6.jpg
$C base.ppm -rotate 90 -quality 95 exif8.jpg && exiftool -q -overwrite_original -n -Orientation=8 exif8.jpg
$C base.ppm -rotate 270 exif6.png && exiftool -q -overwrite_original -n -Orientation=6 exif6.png
# the right half is transparent
$C base.ppm -alpha set -region 48x64+48+0 -alpha transparent +region $S PNG32:alpha.png
cwebp -quiet -lossless -exact alpha.png -o alpha.webp
$C alpha.png $S -compress Zip alpha.tiff
$C alpha.png $S PNG8:alpha-palette.png
$C alpha.png $S alpha.gif
$C base.ppm $S -type palette PNG8:palette.png
# grey: quarters 51, 102, 153, 204
$C -size 48x32 xc:'gray(51)' xc:'gray(102)' +append gtop.pgm
$C -size 48x32 xc:'gray(153)' xc:'gray(204)' +append gbottom.pgm
$C gtop.pgm gbottom.pgm -append gbase.pgm
$C gbase.pgm $S -depth 8 -define png:color-type=0 grey.png
$C gbase.pgm $S -colorspace Gray -quality 98 grey.jpg
$C gbase.pgm $S -depth 16 -define png:bit-depth=16 -define png:color-type=0 grey16.png
$C gbase.pgm $S -depth 16 -compress none -colorspace Gray grey16.tiff
$C gbase.pgm $S -depth 32 -define quantum:format=floating-point -compress none -colorspace Gray grey-float.tiff || true # warns about a predictor tag, the file is whole
$C gbase.pgm -alpha set -region 48x64+48+0 -alpha transparent +region $S -define png:color-type=4 grey-alpha.png
$C gbase.pgm $S -threshold 50% -define png:bit-depth=1 -define png:color-type=0 bilevel.png
$C base.ppm $S -depth 16 PNG48:rgb16.png
$C base.ppm $S -depth 16 -compress Zip rgb16.tiff
$C base.ppm $S -colorspace CMYK -quality 97 -sampling-factor 1x1 cmyk.jpg
$C base.ppm $S -colorspace CMYK -compress LZW cmyk.tiff
# the same colours, written in another colour space with its profile
$C base.ppm -profile $ICC/sRGB.icc -profile $ICC/compatibleWithAdobeRGB1998.icc -define png:color-type=2 adobe-rgb.png
$C base.ppm -profile $ICC/sRGB.icc -profile $ICC/compatibleWithAdobeRGB1998.icc -quality 97 -sampling-factor 1x1 adobe-rgb.jpg
rm -f *.ppm *.pgm tmp.png
